package podnet

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

// addBridge makes an interface of the host with addresses.
func addBridge(t *testing.T, name string, addresses ...string) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatal(err)
		}
	}
}

// A node with another data folder left its bridge on the machine: the first start, and a start with
// moved data, are refused in one line that says what to do.
func TestNew_OtherNetworksTakeThePodsAddresses(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	fresh := Config{
		NodeName: "a",
		Cluster:  dualStack(),
		Bridge:   "mote-0a1b2c",
		ConfDir:  t.TempDir(),
		StateDir: t.TempDir(),
	}
	used := fresh
	used.StateDir = t.TempDir()
	if err := remember(used.StateDir, remembered{Self: Node{Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	addBridge(t, "mote-0a1b2c", "10.42.0.1/24", "fd42::1/64")
	addBridge(t, "mote-dns", "10.43.0.10/32")
	fresh.OwnInterfaces, used.OwnInterfaces = []string{"mote-dns"}, []string{"mote-dns"}
	for _, row := range []struct {
		name, address string
		fresh, used   string // in the error; empty for none
	}{
		{"lan", "192.0.2.7/24", "", ""},
		{"docker0", "10.42.7.1/24", "address 10.42.7.1/24 of interface docker0 lies in cluster-cidr", ""},
		{"wg0", "fd43::9/128", "address fd43::9/128 of interface wg0 lies in service-cidr", ""},
		{"mote0", "10.42.0.1/24", "mote uninstall --data-dir /var/lib/mote", "mote uninstall --data-dir /var/lib/mote"},
		{"mote-ffffff", "fd42::1/64", "of a mote with another data folder", "of a mote with another data folder"},
	} {
		addBridge(t, row.name, row.address)
		for _, c := range []struct {
			config Config
			want   string
		}{{fresh, row.fresh}, {used, row.used}} {
			_, err := New(c.config)
			if (err != nil) != (c.want != "") || err != nil && (!strings.Contains(err.Error(), c.want) ||
				strings.Contains(err.Error(), "\n")) {
				t.Errorf("%s: got %v, want %q", row.name, err, c.want)
			}
		}
		if err := removeLink(row.name); err != nil {
			t.Fatal(err)
		}
	}
}

// What appears while the node runs is reported once, in the log and in the note for `mote status`,
// and so is its end.
func TestNetwork_Note_FollowsTheHostsNetworks(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	core, logged := observer.New(zap.InfoLevel)
	n, err := New(Config{
		NodeName: "a",
		Cluster:  dualStack(),
		ConfDir:  t.TempDir(),
		StateDir: t.TempDir(),
		Logger:   zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	addBridge(t, "lan", "192.0.2.7/24")
	for _, row := range []struct{ name, address, want string }{
		{"docker0", "10.42.0.1/16", "address 10.42.0.1/16 of interface docker0 lies in cluster-cidr 10.42.0.0/16"},
		{"wg0", "fd43::9/128", "address fd43::9/128 of interface wg0 lies in service-cidr fd43::/112"},
	} {
		addBridge(t, row.name, row.address)
		for range 2 {
			if err := n.watchOverlaps(); err != nil {
				t.Fatal(err)
			}
		}
		if note := n.Note(); !strings.Contains(note, row.want) {
			t.Errorf("note is %q, want %q", note, row.want)
		}
		if err := removeLink(row.name); err != nil {
			t.Fatal(err)
		}
		if err := n.watchOverlaps(); err != nil {
			t.Fatal(err)
		}
		if note := n.Note(); note != "" {
			t.Errorf("note is %q after the interface is gone", note)
		}
		lines := logged.TakeAll()
		if len(lines) != 2 || lines[0].Level != zap.WarnLevel || !strings.Contains(lines[0].Message, row.want) ||
			lines[1].Level != zap.InfoLevel {
			t.Errorf("logged %v", lines)
		}
	}
}

// dualStack has ranges of both families.
func dualStack() clusterconfig.Config {
	return clusterconfig.Config{
		ClusterCIDRs: prefixes("10.42.0.0/16", "fd42::/56"),
		ServiceCIDRs: prefixes("10.43.0.0/16", "fd43::/112"),
	}.WithDefaults()
}
