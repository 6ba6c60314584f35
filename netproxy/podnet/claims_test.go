package podnet

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

// What nodes claim is believed as far as no older node, no server and not this machine contradicts.
func TestClaims_Believe(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC) }
	node := func(name string, since int, cidr string, ips ...string) Node {
		n := Node{Name: name, Since: day(since), Addrs: addrs(ips...)}
		if cidr != "" {
			n.PodCIDRs = prefixes(strings.Fields(cidr)...)
		}
		return n
	}
	behind := func(n Node, outside string) Node { n.Outside = netip.MustParseAddr(outside); return n }
	self := node("self", 2, "10.42.0.0/24 fd00:42::/64", "192.0.2.1", "2001:db8::1")
	good := node("good", 3, "10.42.5.0/24", "192.0.2.5")
	for _, row := range []struct {
		name    string
		backend clusterconfig.Backend
		peers   []Node
		want    string // names of those that are believed
		says    []string
	}{
		{name: "two", peers: []Node{good, node("n2", 4, "10.42.1.0/24", "192.0.2.2")}, want: "good n2"},
		{
			name:  "dual stack",
			peers: []Node{node("n2", 4, "10.42.1.0/24 fd00:42:0:1::/64", "192.0.2.2", "2001:db8::2")},
			want:  "n2",
		},
		{name: "without a range yet", peers: []Node{node("n2", 4, "")}, want: "n2"},
		{
			name:  "a range outside the cluster's",
			peers: []Node{good, node("n2", 4, "198.18.0.0/15", "192.0.2.2")},
			want:  "good",
			says:  []string{"n2: its pod CIDR 198.18.0.0/15 is outside the cluster's, 10.42.0.0/16,fd00:42::/56"},
		},
		{
			name:  "the second range outside",
			peers: []Node{node("n2", 4, "10.42.1.0/24 2001:db8::/64", "192.0.2.2")},
			says:  []string{"n2: its pod CIDR 2001:db8::/64 is outside"},
		},
		{
			name:  "a range that holds the cluster's",
			peers: []Node{node("n2", 4, "10.0.0.0/8", "192.0.2.2"), node("n3", 4, "0.0.0.0/0", "192.0.2.3")},
			says:  []string{"n2: its pod CIDR 10.0.0.0/8 is outside", "n3: its pod CIDR 0.0.0.0/0 is outside"},
		},
		{
			name:  "this node's",
			peers: []Node{node("n2", 1, "10.42.0.0/24", "192.0.2.2"), node("n3", 4, "10.42.0.128/25", "192.0.2.3")},
			says:  []string{"n2: its pod CIDR is this node's own", "n3: its pod CIDR is this node's own"},
		},
		{
			name:  "an older node's",
			peers: []Node{node("a", 4, "10.42.5.0/24", "192.0.2.2"), good},
			want:  "good",
			says:  []string{"a: its pod CIDR 10.42.5.0/24 overlaps that of node good, which is older"},
		},
		{
			name:  "part of an older node's",
			peers: []Node{node("a", 4, "10.42.5.0/25", "192.0.2.2"), good},
			want:  "good",
			says:  []string{"overlaps that of node good"},
		},
		{
			name:  "more than an older node's",
			peers: []Node{node("a", 4, "10.42.4.0/22", "192.0.2.2"), good},
			want:  "good",
			says:  []string{"overlaps that of node good"},
		},
		{
			name:  "of the same age",
			peers: []Node{node("z", 3, "10.42.5.0/24", "192.0.2.2"), good},
			want:  "good",
			says:  []string{"z: its pod CIDR"},
		},
		{
			name:  "a range free again as its claimant is not believed",
			peers: []Node{node("old", 1, "10.0.0.0/8", "192.0.2.9"), good},
			want:  "good",
			says:  []string{"old: "},
		},
		{
			name:  "a range with a server",
			peers: []Node{good, node("n2", 4, "10.42.77.0/24", "192.0.2.2")},
			want:  "good",
			says:  []string{"n2: its pod CIDR 10.42.77.0/24 holds 10.42.77.7, the address of a server"},
		},
		{
			name:  "a range with the gateway",
			peers: []Node{node("n2", 4, "10.42.78.0/24", "192.0.2.2")},
			says:  []string{"holds 10.42.78.1, the address of a gateway"},
		},
		{
			name:  "a range with this machine",
			peers: []Node{node("n2", 4, "10.42.79.0/24", "192.0.2.2")},
			says:  []string{"holds 10.42.79.9, the address of this machine"},
		},
		{
			name:  "an address in another's range takes it from nobody",
			peers: []Node{good, node("n2", 4, "10.42.1.0/24", "10.42.5.7")},
			want:  "good",
			says:  []string{"n2: its address 10.42.5.7 is in the ranges of pods and services"},
		},
		{
			name:  "nor an older one's",
			peers: []Node{good, node("n2", 1, "10.42.1.0/24", "10.42.5.7")},
			want:  "good",
			says:  []string{"n2: its address 10.42.5.7 is in the ranges of pods and services"},
		},
		{
			name:  "this node's address",
			peers: []Node{good, node("n2", 4, "10.42.1.0/24", "192.0.2.1")},
			want:  "good",
			says:  []string{"n2: its address 192.0.2.1 is this node's own"},
		},
		{
			name:  "another address of this machine",
			peers: []Node{node("n2", 4, "10.42.1.0/24", "203.0.113.1")},
			says:  []string{"n2: its address 203.0.113.1 is this node's own"},
		},
		{
			name:  "addresses of no machine",
			peers: []Node{node("n2", 4, "10.42.1.0/24", "224.0.0.1"), node("n3", 4, "10.42.3.0/24", "127.0.0.1")},
			says:  []string{"n2: its address 224.0.0.1 is not that", "n3: its address 127.0.0.1 is not that"},
		},
		{
			name:  "a service's address",
			peers: []Node{node("n2", 4, "10.42.1.0/24", "10.43.0.1")},
			says:  []string{"n2: its address 10.43.0.1 is in the ranges"},
		},
		{
			name:  "one good address is enough",
			peers: []Node{node("n2", 4, "10.42.1.0/24", "127.0.0.1", "192.0.2.2")},
			want:  "n2",
		},
		{
			name:  "behind a NAT with an address this node has as well",
			peers: []Node{behind(node("n2", 4, "10.42.1.0/24", "192.0.2.1"), "198.51.100.2")},
			want:  "n2",
		},
		{
			name:  "outside at a pod",
			peers: []Node{behind(node("n2", 4, "10.42.1.0/24", "192.0.2.2"), "10.42.5.7")},
			says:  []string{"n2: its address 10.42.5.7 is in the ranges"},
		},
		{
			name:  "outside at multicast",
			peers: []Node{behind(node("n2", 4, "10.42.1.0/24", "192.0.2.2"), "239.0.0.1")},
			says:  []string{"n2: its address 239.0.0.1 is not that"},
		},
		{
			name:    "outside means nothing to direct routes",
			backend: clusterconfig.BackendHostGW,
			peers:   []Node{behind(node("n2", 4, "10.42.1.0/24", "192.0.2.1"), "198.51.100.2")},
			says:    []string{"n2: its address 192.0.2.1 is this node's own"},
		},
		{
			name: "a name made for another's hardware address",
			peers: []Node{good, node("good-twin", 4, "10.42.1.0/24", "192.0.2.2"),
				node("self-twin", 1, "10.42.2.0/24", "192.0.2.3")},
			want: "good",
			says: []string{"good-twin: the hardware address of its name",
				"self-twin: the hardware address of its name"},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := claims{
				cluster: clusterconfig.Config{
					ClusterCIDRs:   prefixes("10.42.0.0/16", "fd00:42::/56"),
					ServiceCIDRs:   prefixes("10.43.0.0/16"),
					NetworkBackend: row.backend,
				},
				self: self,
				machines: []machine{
					{netip.MustParseAddr("10.42.77.7"), aServer}, {netip.MustParseAddr("10.42.78.1"), aGateway},
					{netip.MustParseAddr("10.42.79.9"), thisMachine}, {netip.MustParseAddr("203.0.113.1"), thisMachine},
				},
				mac: func(name string) net.HardwareAddr { return overlayMAC(strings.TrimSuffix(name, "-twin")) },
			}
			believed, refused := c.believe(row.peers)
			var names []string
			for _, n := range believed {
				names = append(names, n.Name)
			}
			if got := strings.Join(names, " "); got != row.want {
				t.Errorf("believed are %q, want %q", got, row.want)
			}
			if len(refused) != len(row.says) {
				t.Fatalf("refused are %q, want %q", refused, row.says)
			}
			for i, says := range row.says {
				if !strings.Contains(refused[i], says) {
					t.Errorf("refused is %q, want %q", refused[i], says)
				}
			}
		})
	}
}

// A node that was cut off by a bad route, which it had from an older mote or keeps from before its
// restart, finds its way back by itself: the next pass removes the route, also before any server
// answers. It says so once.
func TestNetwork_CutOffByARoute_HealsByItself(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	for _, backend := range []clusterconfig.Backend{clusterconfig.BackendVXLAN, clusterconfig.BackendHostGW} {
		t.Run(string(backend), func(t *testing.T) {
			c := newCluster(t, backend, 3)
			n := c.nodes[0]
			core, logs := observer.New(zap.WarnLevel)
			n.cfg.Logger = zap.New(core)
			network, err := New(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			server := netip.MustParseAddr("10.42.200.7")
			good, rogue := c.nodes[1].node, c.nodes[2].node
			good.Since = time.Unix(1, 0)
			rogue.PodCIDRs, rogue.Since = prefixes("10.42.200.0/24"), time.Unix(2, 0)
			pass := func() {
				t.Helper()
				inside(t, n.ns, func() error { return network.reconcile(context.Background()) })
			}
			routed := func() string { return run(t, "ip", "-n", n.ns, "route", "get", server.String()) }

			network.SetNodes(n.node, []Node{good, rogue})
			pass()
			if got := routed(); strings.Contains(got, "via 192.0.2.254") {
				t.Fatalf("the rogue's range is not routed at all: %s", got)
			}
			network.SetServers([]netip.Addr{server})
			pass()
			if got := routed(); !strings.Contains(got, "via 192.0.2.254") {
				t.Errorf("the way to the server is %s", got)
			}
			if got := run(t, "ip", "-n", n.ns, "route"); !strings.Contains(got, good.PodCIDRs[0].String()) {
				t.Errorf("the good node's range is not routed: %s", got)
			}
			pass()
			if got := logs.FilterMessage("pods of some nodes are not reachable").Len(); got != 1 {
				t.Errorf("the log has %d lines of it, want 1", got)
			}

			// A mote of before put it back; what is remembered is judged like what is heard.
			bad := []string{"-n", n.ns, "route", "add", "10.42.200.0/24", "via", "192.0.2.3", "proto", "109"}
			if backend == clusterconfig.BackendVXLAN {
				bad = []string{"-n", n.ns, "route", "add", "10.42.200.0/24", "via", "10.42.200.0",
					"dev", overlayName(DefaultBridge), "onlink"}
			}
			run(t, "ip", bad...)
			if got := routed(); strings.Contains(got, "via 192.0.2.254") {
				t.Fatalf("the bad route is not there: %s", got)
			}
			again, err := New(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			known, ok, err := recall(n.cfg.StateDir, n.node.Name)
			if err != nil || !ok || len(known.Servers) != 1 {
				t.Fatalf("remembered is %+v, %v (%v)", known, ok, err)
			}
			again.nodes, again.known = known, true
			network = again
			pass()
			if got := routed(); !strings.Contains(got, "via 192.0.2.254") {
				t.Errorf("after a restart the way to the server is %s", got)
			}
		})
	}
}
