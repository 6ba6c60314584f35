package hostnets

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

func address(name, text string) Use {
	return Use{Interface: name, Prefix: netip.MustParsePrefix(text), Address: true}
}

func route(name, text string) Use { return Use{Interface: name, Prefix: netip.MustParsePrefix(text)} }

func down(u Use) Use {
	u.Down = true
	return u
}

func TestFind(t *testing.T) {
	dual := clusterconfig.Config{
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
	}.WithDefaults()
	none := dual
	none.NetworkBackend = clusterconfig.BackendNone
	docker := dual
	docker.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}
	// The verdicts: "refused" at any start, "refused at first" on nodes without pods, "told".
	for _, row := range []struct {
		name    string
		cluster clusterconfig.Config
		uses    []Use
		want    string // the overlaps with their verdicts
	}{
		{"nothing", dual, []Use{address("eth0", "192.0.2.7/24"), route("eth0", "192.0.2.0/24"),
			address("eth0", "2001:db8::7/64"), address("lo", "127.0.0.1/8")}, ""},
		{"the bridge of the default data folder", dual,
			[]Use{address("mote0", "10.42.0.1/24"), route("mote0", "10.42.0.0/24")},
			"address 10.42.0.1/24 of interface mote0 lies in cluster-cidr 10.42.0.0/16: refused"},
		{"the bridge of another data folder", dual, []Use{address("mote-0a1b2c", "10.42.0.1/24")},
			"address 10.42.0.1/24 of interface mote-0a1b2c lies in cluster-cidr 10.42.0.0/16: refused"},
		{"another one's bridge over IPv6", dual, []Use{address("mote0", "fd42::1/64")},
			"address fd42::1/64 of interface mote0 lies in cluster-cidr fd42::/56: refused"},
		{"another one's overlay", dual, []Use{address("mote.1", "10.42.3.0/32")},
			"address 10.42.3.0/32 of interface mote.1 lies in cluster-cidr 10.42.0.0/16: refused"},
		{"another one's bridge without a backend", none, []Use{address("mote0", "10.42.0.1/24")},
			"address 10.42.0.1/24 of interface mote0 lies in cluster-cidr 10.42.0.0/16: refused"},
		{"another one's bridge with other ranges", dual, []Use{address("mote0", "10.52.0.1/24")}, ""},
		{"docker0", docker, []Use{address("docker0", "172.17.0.1/16"), route("docker0", "172.17.0.0/16")},
			"address 172.17.0.1/16 of interface docker0 lies in cluster-cidr 172.16.0.0/12: refused at first"},
		{"a bridge of k3s", dual, []Use{address("cni0", "10.42.0.1/24")},
			"address 10.42.0.1/24 of interface cni0 lies in cluster-cidr 10.42.0.0/16: refused at first"},
		{"the LAN", dual, []Use{address("eth0", "10.42.0.7/24"), route("eth0", "10.42.0.0/24")},
			"address 10.42.0.7/24 of interface eth0 lies in cluster-cidr 10.42.0.0/16: refused at first"},
		{"a VPN", dual, []Use{address("tun0", "10.8.0.2/24"), route("tun0", "10.8.0.0/24"),
			route("tun0", "10.43.7.0/24")},
			"route 10.43.7.0/24 (interface tun0) lies in service-cidr 10.43.0.0/16: refused at first"},
		{"a VPN over IPv6", dual, []Use{route("wg0", "fd43::/112")},
			"route fd43::/112 (interface wg0) lies in service-cidr fd43::/112: refused at first"},
		{"service addresses of another proxy", dual, []Use{address("kube-ipvs0", "10.43.0.1/32")},
			"address 10.43.0.1/32 of interface kube-ipvs0 lies in service-cidr 10.43.0.0/16: refused at first"},
		{"the cluster's DNS", dual, []Use{address("lo", "10.43.0.10/32"), address("nodelocaldns", "fd43::a/128")}, ""},
		{"both ranges", dual, []Use{route("tun0", "10.42.0.0/15")}, "route 10.42.0.0/15 (interface tun0) contains " +
			"cluster-cidr 10.42.0.0/16: told, route 10.42.0.0/15 (interface tun0) contains service-cidr " +
			"10.43.0.0/16: told"},
		{"a wide LAN", dual, []Use{address("eth0", "10.1.2.3/8"), route("eth0", "10.0.0.0/8")},
			"route 10.0.0.0/8 (interface eth0) contains cluster-cidr 10.42.0.0/16: told, " +
				"route 10.0.0.0/8 (interface eth0) contains service-cidr 10.43.0.0/16: told"},
		{"an interface that is down", dual, []Use{down(address("mote0", "10.42.0.1/24"))},
			"address 10.42.0.1/24 of interface mote0, which is down, lies in cluster-cidr 10.42.0.0/16: told"},
		{"the user's own backend", none,
			[]Use{address("flannel.1", "10.42.0.0/32"), route("flannel.1", "10.42.1.0/24")}, ""},
		{"the user's own backend and services", none, []Use{route("flannel.1", "10.43.1.0/24")},
			"route 10.43.1.0/24 (interface flannel.1) lies in service-cidr 10.43.0.0/16: refused at first"},
	} {
		var got []string
		for _, o := range Find(row.uses, row.cluster) {
			verdict := "told"
			switch {
			case o.Breaks(false):
				verdict = "refused"
			case o.Breaks(true):
				verdict = "refused at first"
			}
			got = append(got, o.String()+": "+verdict)
			if o.Remedy() == "" || o.otherMote() != strings.Contains(o.Remedy(), "uninstall") {
				t.Errorf("%s: the remedy is %q", row.name, o.Remedy())
			}
		}
		if strings.Join(got, ", ") != row.want {
			t.Errorf("%s:\n got %s\nwant %s", row.name, strings.Join(got, ", "), row.want)
		}
	}
}

func TestList_ReadsTheKernel(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	for _, name := range []string{"lan", "vpn", "mote0", "idle"} {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		if name == "idle" {
			continue
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	for name, texts := range map[string][]string{"lan": {"192.0.2.7/24", "2001:db8::7/64"},
		"mote0": {"10.42.0.1/24"}, "idle": {"10.42.9.1/24"}} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				t.Fatal(err)
			}
		}
	}
	vpn, err := netlink.LinkByName("vpn")
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"10.43.7.0/24", "fd43::/112", "0.0.0.0/0", "10.42.5.0/24"} {
		dst, err := netlink.ParseIPNet(text)
		if err != nil {
			t.Fatal(err)
		}
		// The first in a table of its own, the last marked as the node's.
		r := &netlink.Route{LinkIndex: vpn.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		switch i {
		case 0:
			r.Table = 52
		case 3:
			r.Protocol = 109
		}
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(text, err)
		}
	}
	uses, err := List(Own{Protocols: []int{109}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Use{address("lan", "192.0.2.7/24"), address("lan", "2001:db8::7/64"),
		address("mote0", "10.42.0.1/24"), down(address("idle", "10.42.9.1/24")), route("vpn", "10.43.7.0/24"),
		route("vpn", "fd43::/112")} {
		if !slices.ContainsFunc(uses, func(u Use) bool {
			u.Protocol = 0
			return u == want
		}) {
			t.Errorf("%+v is missing in %+v", want, uses)
		}
	}
	for _, u := range uses {
		if u.Prefix.Bits() == 0 || u.Protocol == 109 {
			t.Errorf("%+v is in the list", u)
		}
	}
	if uses, err = List(Own{Interfaces: []string{"mote0", "vpn"}}); err != nil {
		t.Fatal(err)
	}
	for _, u := range uses {
		if u.Interface == "mote0" || u.Interface == "vpn" {
			t.Errorf("%+v of the node itself is in the list", u)
		}
	}
}
