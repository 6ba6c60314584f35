package agent

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPlaces_TwoNodesOfOneMachineShareNothing(t *testing.T) {
	places := func(dir string) []string { return []string{PodLogsDir(dir), CgroupRoot(dir), Bridge(dir)} }
	if got, want := places("/var/lib/mote/"), []string{"/var/log/pods", "/", "mote0"}; !slices.Equal(got, want) {
		t.Errorf("the default node uses %v, want %v", got, want)
	}
	a, b := places("/srv/a"), places("/srv/b")
	for i := range a {
		if a[i] == b[i] {
			t.Errorf("two nodes share %s", a[i])
		}
	}
	// The kernel takes 15 characters for the name of an interface.
	if len(a[2]) > 15 {
		t.Errorf("bridge name %q is too long", a[2])
	}
	if !slices.Equal(a, places("/srv/a/.")) {
		t.Error("the same folder written differently is another node")
	}
}

func TestNameservers(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       []string
	}{
		{"plain", "search home.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n", []string{"192.0.2.1", "2001:db8::1"}},
		{"stub on loopback", "nameserver 127.0.0.53\noptions edns0\n", nil},
		{"at most three, as resolvers take", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}},
		{"nonsense", "nameserver\nnameserver home\n# nameserver 192.0.2.1\n", nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(file, []byte(row.text), 0o644); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range nameservers(file) {
				got = append(got, a.String())
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("found %v, want %v", got, row.want)
			}
		})
	}
}

func TestWriteResolvConf_HasNoSearchDomains(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := writeResolvConf(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "nameserver ") {
			t.Errorf("pods would get %q", line)
		}
	}
}

func TestPrefixes(t *testing.T) {
	_, v4, err := net.ParseCIDR("10.42.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	_, v6, err := net.ParseCIDR("fd00:42::/56")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/56")}
	if got := prefixes([]*net.IPNet{v4, v6}); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
