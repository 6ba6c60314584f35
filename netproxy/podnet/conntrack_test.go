package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/netnstest"
)

// Entries of pods that went are forgotten, those of other pods and of the host stay: also of pods
// that went while nothing watched, in both families.
func TestNetwork_ForgetGone(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	c := testConfig(t)
	c.Cluster.ClusterCIDRs = prefixes("10.42.0.0/16", "fd42::/56")
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	self := Node{Name: "n1", PodCIDRs: prefixes("10.42.3.0/24", "fd42:0:0:3::/64")}
	leases := filepath.Join(leaseRoot(c.StateDir), NetworkName)
	if err := os.MkdirAll(leases, 0o755); err != nil {
		t.Fatal(err)
	}
	lease := func(name string) string { return filepath.Join(leases, name) }
	for _, name := range []string{"10.42.3.5", "10.42.3.6", "fd42_0_0_3__5", "last_reserved_ip.0", "lock"} {
		if err := os.WriteFile(lease(name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	flow := func(proto uint8, client, port, server string) *netlink.ConntrackFlow {
		from, to := netip.MustParseAddrPort(client), netip.MustParseAddrPort(port)
		pod := netip.MustParseAddrPort(server)
		family := uint8(unix.AF_INET)
		if from.Addr().Is6() {
			family = unix.AF_INET6
		}
		return &netlink.ConntrackFlow{
			FamilyType: family,
			Forward: netlink.IPTuple{
				SrcIP:    from.Addr().AsSlice(),
				SrcPort:  from.Port(),
				DstIP:    to.Addr().AsSlice(),
				DstPort:  to.Port(),
				Protocol: proto,
			},
			Reverse: netlink.IPTuple{
				SrcIP:    pod.Addr().AsSlice(),
				SrcPort:  pod.Port(),
				DstIP:    from.Addr().AsSlice(),
				DstPort:  from.Port(),
				Protocol: proto,
			},
			TimeOut: 300,
		}
	}
	for name, f := range map[string]*netlink.ConntrackFlow{
		"hostPort, pod 5":           flow(unix.IPPROTO_UDP, "192.0.2.1:1", "192.0.2.5:5300", "10.42.3.5:53"),
		"hostPort, pod 6":           flow(unix.IPPROTO_UDP, "192.0.2.1:2", "192.0.2.5:5301", "10.42.3.6:53"),
		"hostPort, pod 5, IPv6":     flow(unix.IPPROTO_UDP, "[2001:db8::1]:3", "[2001:db8::5]:5", "[fd42:0:0:3::5]:5"),
		"pod gone long ago":         flow(unix.IPPROTO_UDP, "192.0.2.1:4", "192.0.2.5:5302", "10.42.3.9:53"),
		"from a pod gone long ago":  flow(unix.IPPROTO_UDP, "10.42.3.9:5", "192.0.2.7:53", "192.0.2.7:53"),
		"pod of another node":       flow(unix.IPPROTO_UDP, "192.0.2.1:6", "10.43.0.9:53", "10.42.7.9:53"),
		"the bridge's own address":  flow(unix.IPPROTO_UDP, "10.42.3.1:7", "192.0.2.7:53", "192.0.2.7:53"),
		"the overlay's own address": flow(unix.IPPROTO_UDP, "10.42.3.0:8", "10.42.7.2:53", "10.42.7.2:53"),
		"the host's":                flow(unix.IPPROTO_UDP, "192.0.2.5:9", "192.0.2.7:53", "192.0.2.7:53"),
	} {
		if err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.FamilyType), f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	// ports are the clients' ports of the entries that are left, which name the entries above.
	ports := func() string {
		var out []string
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range flows {
				out = append(out, fmt.Sprint(f.Forward.SrcPort))
			}
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for _, step := range []struct{ name, gone, want string }{
		{"the first pass", "", "1 2 3 6 7 8 9"},
		{"a pod goes", "10.42.3.5", "2 3 6 7 8 9"},
		{"nothing changes", "", "2 3 6 7 8 9"},
		{"another goes", "fd42_0_0_3__5", "2 6 7 8 9"},
		{"the last one goes", "10.42.3.6", "6 7 8 9"},
	} {
		if step.gone != "" {
			if err := os.Remove(lease(step.gone)); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.forgetLeases(self); err != nil {
			t.Fatal(err)
		}
		if got := ports(); got != step.want {
			t.Errorf("after %s: entries %s, want %s", step.name, got, step.want)
		}
	}

	// A pod that comes and goes between two passes leaves an entry and no lease.
	short := flow(unix.IPPROTO_UDP, "192.0.2.1:10", "192.0.2.5:5303", "10.42.3.8:53")
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, short); err != nil {
		t.Fatal(err)
	}
	n.leaseRemoved()
	if err := n.forgetLeases(self); err != nil {
		t.Fatal(err)
	}
	if got, want := ports(), "6 7 8 9"; got != want {
		t.Errorf("after a pod that no pass has seen: entries %s, want %s", got, want)
	}
}

func TestGoneFilter_ProtocolsWithoutHandshake(t *testing.T) {
	filter := goneFilter(func(ip netip.Addr) bool { return ip.String() == "10.42.3.5" })
	for proto, want := range map[uint8]bool{unix.IPPROTO_UDP: true, unix.IPPROTO_UDPLITE: true, unix.IPPROTO_SCTP: true,
		unix.IPPROTO_TCP: false, unix.IPPROTO_ICMP: false} {
		flow := &netlink.ConntrackFlow{Reverse: netlink.IPTuple{SrcIP: []byte{10, 42, 3, 5}}}
		flow.Forward.Protocol = proto
		if got := filter.MatchConntrackFlow(flow); got != want {
			t.Errorf("protocol %d: %v", proto, got)
		}
	}
}
