package podnet

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write testdata anew")

// golden compares got with the file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs:\n--- got\n%s--- want\n%s", name, got, want)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	out := make([]netip.Addr, len(texts))
	for i, s := range texts {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

var ruleCases = []struct {
	name  string
	rules Rules
}{
	{"ipv4", Rules{Bridge: "mote0", ClusterCIDRs: prefixes("10.42.0.0/16"), LocalServiceIPs: addrs("10.43.0.10")}},
	{"ipv6", Rules{Bridge: "mote0", ClusterCIDRs: prefixes("fd00:42::/56"), LocalServiceIPs: addrs("fd00:43::a")}},
	{"dual", Rules{Bridge: "br1", ClusterCIDRs: prefixes("10.42.0.0/16", "fd00:42::/56"),
		LocalServiceIPs: addrs("10.43.0.10", "fd00:43::a")}},
	{"overlap", Rules{Bridge: "mote0",
		ClusterCIDRs: prefixes("10.42.7.0/24", "10.50.0.0/16", "10.42.0.0/16", "10.42.9.0/24")}},
}

func TestRenderNFTables(t *testing.T) {
	for _, c := range ruleCases {
		t.Run(c.name, func(t *testing.T) { golden(t, "rules-"+c.name+".nft", RenderNFTables(c.rules)) })
	}
}

func TestRenderIPTables(t *testing.T) {
	for _, c := range ruleCases {
		t.Run(c.name, func(t *testing.T) {
			var text string
			for _, f := range families {
				text += renderIPTables(append(acceptChains(c.rules, f), masqueradeChain(c.rules, f)))
			}
			golden(t, "rules-"+c.name+".iptables", text)
		})
	}
}

func TestDropsPackets(t *testing.T) {
	for line, want := range map[string]bool{
		"-P FORWARD ACCEPT":                  false,
		"-P FORWARD DROP":                    true,
		"-A FORWARD -j DOCKER-USER":          true,
		"-A FORWARD -j MOTE-FORWARD":         false,
		"-A FORWARD -i docker0 -j ACCEPT":    false,
		"-A INPUT -j KUBE-FIREWALL":          false,
		"-A FORWARD -j REJECT --reject-with": true,
		"-A FORWARD -m comment --comment x":  false,
	} {
		if got := dropsPackets(line); got != want {
			t.Errorf("dropsPackets(%q) = %v, want %v", line, got, want)
		}
	}
}
