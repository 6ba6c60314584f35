package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

func TestPlanPeers(t *testing.T) {
	self := Node{Name: "n1", PodCIDRs: prefixes("10.42.0.0/24"), Addrs: addrs("192.0.2.1")}
	peer := func(name, cidr string, ips ...string) Node {
		return Node{Name: name, PodCIDRs: prefixes(cidr), Addrs: addrs(ips...)}
	}
	behind := func(n Node, outside string) Node { n.Outside = netip.MustParseAddr(outside); return n }
	dual := Node{Name: "d", PodCIDRs: prefixes("10.42.7.0/24", "fd00:42:7::/64"),
		Addrs: addrs("192.0.2.7", "2001:db8::7")}
	for _, c := range []struct {
		name    string
		backend clusterconfig.Backend
		self    Node
		peers   []Node
		want    string
	}{
		{"alone", clusterconfig.BackendVXLAN, self, nil, ""},
		{"none", clusterconfig.BackendNone, self, []Node{peer("n2", "10.42.1.0/24", "192.0.2.2")}, ""},
		{"two", clusterconfig.BackendVXLAN, self, []Node{peer("n2", "10.42.1.0/24", "192.0.2.2")},
			"local 192.0.2.1 10.42.0.0; n2 at 192.0.2.2; 10.42.1.0/24 via 10.42.1.0"},
		{"without a range yet", clusterconfig.BackendVXLAN, self, []Node{{Name: "n2", Addrs: addrs("192.0.2.2")}}, ""},
		{"dual stack", clusterconfig.BackendVXLAN, self, []Node{dual},
			"local 192.0.2.1 10.42.0.0; d at 192.0.2.7; 10.42.7.0/24 via 10.42.7.0; fd00:42:7::/64 via fd00:42:7::"},
		{"other family", clusterconfig.BackendVXLAN, self, []Node{peer("n2", "10.42.1.0/24", "2001:db8::2")},
			"skipped n2: it and this node have no addresses of the same family"},
		{"same range", clusterconfig.BackendVXLAN, self, []Node{peer("n2", "10.42.0.0/24", "192.0.2.2")},
			"skipped n2: its pod CIDR is this node's own"},
		{"behind a NAT", clusterconfig.BackendVXLAN, self,
			[]Node{behind(peer("n2", "10.42.1.0/24", "10.0.0.2"), "198.51.100.2")},
			"local 192.0.2.1 10.42.0.0; n2 at 198.51.100.2; 10.42.1.0/24 via 10.42.1.0"},
		{"behind the same NAT", clusterconfig.BackendVXLAN, behind(self, "198.51.100.2"),
			[]Node{behind(peer("n2", "10.42.1.0/24", "10.0.0.2"), "198.51.100.2")},
			"local 192.0.2.1 10.42.0.0; n2 at 10.0.0.2; 10.42.1.0/24 via 10.42.1.0"},
		{"direct", clusterconfig.BackendHostGW, self, []Node{dual},
			"10.42.7.0/24 via 192.0.2.7; fd00:42:7::/64 via 2001:db8::7"},
		{"direct without the family", clusterconfig.BackendHostGW, self,
			[]Node{peer("n2", "fd00:42:1::/64", "192.0.2.2")},
			"skipped n2: it has no address to reach fd00:42:1::/64 by"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := describe(planPeers(c.backend, c.self, c.peers), c.peers); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// describe prints a plan with names for hardware addresses.
func describe(p plan, peers []Node) string {
	var parts []string
	if p.local.IsValid() {
		text := "local " + p.local.String()
		for _, a := range p.addrs {
			text += " " + a.String()
		}
		parts = append(parts, text)
	}
	for _, l := range p.links {
		for _, n := range peers {
			if overlayMAC(n.Name).String() == l.mac.String() {
				parts = append(parts, n.Name+" at "+l.outer.String())
			}
		}
	}
	for _, r := range p.routes {
		parts = append(parts, r.dst.String()+" via "+r.via.String())
	}
	for _, s := range p.skipped {
		parts = append(parts, "skipped "+s)
	}
	return strings.Join(parts, "; ")
}

func TestOverlayName(t *testing.T) {
	for bridge, want := range map[string]string{"mote0": "mote.1", "br-second": "br-second.1",
		"a-very-long-one": "a-very-long-o.1"} {
		if got := overlayName(bridge); got != want || len(got) > 15 {
			t.Errorf("overlay of %s is %s, want %s", bridge, got, want)
		}
	}
}

// cluster is hosts on one switch, each a namespace with a network of its own and one pod.
type cluster struct {
	nodes []*clusterNode
}

type clusterNode struct {
	node Node
	ns   string
	pod  string
	net  *Network
	cfg  Config
}

// newCluster makes n hosts at 192.0.2.1 and up on a bridge of the calling namespace.
func newCluster(t *testing.T, backend clusterconfig.Backend, n int) *cluster {
	t.Helper()
	run(t, "ip", "link", "add", "switch", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", "switch") })
	run(t, "ip", "link", "set", "switch", "up")
	c := &cluster{}
	for i := range n {
		id := fmt.Sprintf("mote-%s-%d-%d", backend, os.Getpid(), i+1)
		node := &clusterNode{ns: id, pod: id + "-pod", node: Node{
			Name: fmt.Sprintf("n%d", i+1), PodCIDRs: prefixes(fmt.Sprintf("10.42.%d.0/24", i+1)),
			Addrs: addrs(fmt.Sprintf("192.0.2.%d", i+1)),
		}}
		for _, ns := range []string{node.ns, node.pod} {
			run(t, "ip", "netns", "add", ns)
			t.Cleanup(func() { run(t, "ip", "netns", "del", ns) })
			run(t, "ip", "-n", ns, "link", "set", "lo", "up")
		}
		port := fmt.Sprintf("port%d", i+1)
		run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.ns)
		t.Cleanup(func() {
			// A namespace that goes away may have taken it along.
			if err := removeLink(port); err != nil {
				t.Error(err)
			}
		})
		run(t, "ip", "link", "set", port, "master", "switch", "up")
		run(t, "ip", "-n", node.ns, "addr", "add", node.node.Addrs[0].String()+"/24", "dev", "eth0")
		run(t, "ip", "-n", node.ns, "link", "set", "eth0", "up")
		run(t, "ip", "-n", node.ns, "route", "add", "default", "via", "192.0.2.254")
		gateway := node.node.PodCIDRs[0].Addr().Next()
		run(t, "ip", "-n", node.ns, "link", "add", DefaultBridge, "type", "bridge")
		run(t, "ip", "-n", node.ns, "addr", "add", gateway.String()+"/24", "dev", DefaultBridge)
		run(t, "ip", "-n", node.ns, "link", "set", DefaultBridge, "up")
		run(t, "ip", "-n", node.ns, "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", node.pod)
		run(t, "ip", "-n", node.ns, "link", "set", "pod0", "master", DefaultBridge, "up")
		run(t, "ip", "-n", node.pod, "addr", "add", gateway.Next().String()+"/24", "dev", "eth0")
		run(t, "ip", "-n", node.pod, "link", "set", "eth0", "mtu", "1450", "up")
		run(t, "ip", "-n", node.pod, "route", "add", "default", "via", gateway.String())
		node.cfg = testConfig(t)
		node.cfg.NodeName, node.cfg.Cluster.NetworkBackend = node.node.Name, backend
		c.nodes = append(c.nodes, node)
	}
	return c
}

func (n *clusterNode) podIP() string { return n.node.PodCIDRs[0].Addr().Next().Next().String() }

// start makes the network of one host. Its loop is not run, as one process has one namespace:
// passes are, by reconcile.
func (n *clusterNode) start(t *testing.T) {
	t.Helper()
	n.cfg.Logger = zaptest.NewLogger(t).Named(n.node.Name)
	network, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.net = network
}

// reconcile runs one pass of the host's network with the nodes given, in the host's namespace.
func (n *clusterNode) reconcile(t *testing.T, all []*clusterNode) {
	t.Helper()
	var peers []Node
	for _, other := range all {
		if other != n {
			peers = append(peers, other.node)
		}
	}
	n.net.SetNodes(n.node, peers)
	n.net.poke(true)
	inside(t, n.ns, func() error { return n.net.reconcile(context.Background()) })
}

// inside runs f on a thread in the namespace.
func inside(t *testing.T, ns string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		runtime.LockOSThread()
		handle, err := netns.GetFromName(ns)
		if err != nil {
			done <- err
			return
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", ns, err)
	}
}

func (c *cluster) reconcile(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		n.reconcile(t, c.nodes)
	}
}

// reach checks that every pod reaches every other, seen under its own address, with small and with
// full packets.
func (c *cluster) reach(t *testing.T) {
	t.Helper()
	for _, from := range c.nodes {
		for _, to := range c.nodes {
			if from == to {
				continue
			}
			// 1450 less the headers of IP and UDP.
			for _, size := range []int{1, 1422} {
				eventually(t, func() string {
					if seen, err := send(t, from.pod, to.pod, to.podIP(), size); err != nil || seen != from.podIP() {
						return fmt.Sprintf("%s to %s with %d bytes: seen as %q, %v", from.node.Name, to.node.Name, size,
							seen, err)
					}
					return ""
				})
			}
		}
	}
}

// send sends one unfragmented packet from a namespace to an address of another and returns who it
// seems to come from.
func send(t *testing.T, from, to, ip string, size int) (seen string, err error) {
	t.Helper()
	var receiver net.PacketConn
	inside(t, to, func() (err error) {
		receiver, err = net.ListenPacket("udp", ip+":0")
		return err
	})
	defer receiver.Close()
	var sender net.Conn
	inside(t, from, func() (err error) {
		dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			controlErr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			})
			return errors.Join(err, controlErr)
		}}
		sender, err = dialer.Dial("udp", receiver.LocalAddr().String())
		return err
	})
	defer sender.Close()
	if _, err := sender.Write(make([]byte, size)); err != nil {
		return "", err
	}
	if err := receiver.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	_, source, err := receiver.ReadFrom(make([]byte, 2048))
	if err != nil {
		return "", err
	}
	return source.(*net.UDPAddr).IP.String(), nil
}

func TestNetwork_Peers(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	for _, backend := range []clusterconfig.Backend{clusterconfig.BackendVXLAN, clusterconfig.BackendHostGW} {
		t.Run(string(backend), func(t *testing.T) {
			c := newCluster(t, backend, 3)
			for _, n := range c.nodes {
				n.start(t)
			}
			c.reconcile(t)
			c.reach(t)
			state := func(n *clusterNode) string {
				return run(t, "ip", "-n", n.ns, "route") + run(t, "ip", "-n", n.ns, "neigh", "show", "nud",
					"permanent") + run(t, "bridge", "-n", n.ns, "fdb", "show", "dev", overlayOr(backend))
			}
			before := state(c.nodes[0])
			c.reconcile(t)
			if after := state(c.nodes[0]); sortedLines(after) != sortedLines(before) {
				t.Errorf("a second pass changed something:\n%s---\n%s", before, after)
			}

			// A node gets another address.
			moved := c.nodes[1]
			run(t, "ip", "-n", moved.ns, "addr", "del", "192.0.2.2/24", "dev", "eth0")
			run(t, "ip", "-n", moved.ns, "addr", "add", "192.0.2.22/24", "dev", "eth0")
			run(t, "ip", "-n", moved.ns, "route", "replace", "default", "via", "192.0.2.254")
			moved.node.Addrs = addrs("192.0.2.22")
			c.reconcile(t)
			c.reach(t)

			// Something deletes what we made.
			for _, n := range c.nodes {
				if backend == clusterconfig.BackendVXLAN {
					run(t, "ip", "-n", n.ns, "link", "del", overlayName(DefaultBridge))
				} else {
					run(t, "ip", "-n", n.ns, "route", "flush", "proto", fmt.Sprint(routeProtocol))
				}
			}
			c.reconcile(t)
			c.reach(t)

			// A node leaves, and then the last but one.
			c.nodes = c.nodes[:2]
			c.reconcile(t)
			if out := state(c.nodes[0]); strings.Contains(out, "10.42.3.0") || strings.Contains(out, "192.0.2.3") {
				t.Errorf("the node that left is still known:\n%s", out)
			}
			c.reach(t)
			c.nodes = c.nodes[:1]
			c.reconcile(t)
			if out := run(t, "ip", "-n", c.nodes[0].ns, "link"); strings.Contains(out, overlayName(DefaultBridge)) {
				t.Errorf("an overlay to nobody:\n%s", out)
			}
			inside(t, c.nodes[0].ns, func() error { return Cleanup(context.Background(), c.nodes[0].cfg) })
			if out := run(t, "ip", "-n", c.nodes[0].ns, "route"); strings.Contains(out, "10.42.") {
				t.Errorf("routes are left:\n%s", out)
			}
		})
	}
}

// TestNetwork_Peers_BackendChanges goes from each backend to each other, as servers may say so:
// what the one before made has to go.
func TestNetwork_Peers_BackendChanges(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	c := newCluster(t, clusterconfig.BackendVXLAN, 2)
	for _, backend := range []clusterconfig.Backend{clusterconfig.BackendVXLAN, clusterconfig.BackendHostGW,
		clusterconfig.BackendNone, clusterconfig.BackendVXLAN, clusterconfig.BackendNone, clusterconfig.BackendHostGW,
		clusterconfig.BackendVXLAN} {
		for _, n := range c.nodes {
			n.cfg.Cluster.NetworkBackend = backend
			n.start(t)
		}
		c.reconcile(t)
		n := c.nodes[0]
		routes, links := run(t, "ip", "-n", n.ns, "route"), run(t, "ip", "-n", n.ns, "link")
		want := map[clusterconfig.Backend]string{
			clusterconfig.BackendVXLAN:  "10.42.2.0/24 via 10.42.2.0 dev mote.1 onlink",
			clusterconfig.BackendHostGW: "10.42.2.0/24 via 192.0.2.2 dev eth0"}[backend]
		if strings.Count(routes, "10.42.2.0/24") != min(1, len(want)) || !strings.Contains(routes, want) {
			t.Errorf("%s: routes, wanted %q:\n%s", backend, want, routes)
		}
		if overlay := strings.Contains(links,
			overlayName(DefaultBridge)); overlay != (backend == clusterconfig.BackendVXLAN) {
			t.Errorf("%s: an overlay: %v:\n%s", backend, overlay, links)
		}
		if backend != clusterconfig.BackendNone {
			c.reach(t)
		}
	}
	// With nobody left there is no overlay, and no route that host-gw made.
	last := c.nodes[0]
	last.cfg.Cluster.NetworkBackend = clusterconfig.BackendHostGW
	last.start(t)
	c.reconcile(t)
	last.cfg.Cluster.NetworkBackend = clusterconfig.BackendVXLAN
	last.start(t)
	last.reconcile(t, c.nodes[:1])
	if out := run(t, "ip", "-n", last.ns, "route"); strings.Contains(out, "10.42.2.") {
		t.Errorf("the node that left is still known:\n%s", out)
	}
}

// TestNetwork_Peers_BehindNAT puts the second host behind a router that hides it, as at home. The
// first host has to reach its pods without having been spoken to by them.
func TestNetwork_Peers_BehindNAT(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	c := newCluster(t, clusterconfig.BackendVXLAN, 2)
	hidden := c.nodes[1]
	router := hidden.ns + "-nat"
	run(t, "ip", "netns", "add", router)
	t.Cleanup(func() { run(t, "ip", "netns", "del", router) })
	// The hidden host's port on the switch becomes the router's; behind it lies a network of its
	// own.
	run(t, "ip", "-n", hidden.ns, "link", "set", "eth0", "netns", router)
	run(t, "ip", "-n", router, "addr", "add", "192.0.2.9/24", "dev", "eth0")
	run(t, "ip", "-n", router, "link", "set", "eth0", "up")
	run(t, "ip", "-n", router, "link", "add", "home", "type", "veth", "peer", "name", "eth0", "netns", hidden.ns)
	run(t, "ip", "-n", router, "addr", "add", "10.9.0.1/24", "dev", "home")
	run(t, "ip", "-n", router, "link", "set", "home", "up")
	run(t, "ip", "-n", hidden.ns, "addr", "add", "10.9.0.2/24", "dev", "eth0")
	run(t, "ip", "-n", hidden.ns, "link", "set", "eth0", "up")
	run(t, "ip", "-n", hidden.ns, "route", "add", "default", "via", "10.9.0.1")
	inside(t, router, func() error { return setSysctl("net/ipv4/ip_forward", "1") })
	run(t, "ip", "netns", "exec", router, "nft",
		"table ip nat { chain post { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }; }")
	run(t, "ip", "netns", "exec", router, "nft",
		"table ip guard { chain in { type filter hook forward priority filter; iifname eth0 ct state new drop; }; }")
	hidden.node.Addrs, hidden.node.Outside = addrs("10.9.0.2"), netip.MustParseAddr("192.0.2.9")
	for _, n := range c.nodes {
		n.start(t)
	}
	c.nodes[0].reconcile(t, c.nodes)
	hidden.reconcile(t, c.nodes)
	c.reach(t)
}

// overlayOr is an interface whose forwarding entries can be listed with any backend.
func overlayOr(b clusterconfig.Backend) string {
	if b == clusterconfig.BackendVXLAN {
		return overlayName(DefaultBridge)
	}
	return DefaultBridge
}

func sortedLines(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestNetwork_Run_FindsPeersWithoutItsServer(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	run(t, "ip", "link", "add", "up0", "type", "bridge")
	run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "route", "add", "default", "via", "192.0.2.254")
	c := testConfig(t)
	self := Node{Name: "n1", PodCIDRs: prefixes("10.42.1.0/24"), Addrs: addrs("192.0.2.1")}
	n, stop := startNetwork(t, c)
	n.SetNodes(self, []Node{{Name: "n2", PodCIDRs: prefixes("10.42.2.0/24"), Addrs: addrs("192.0.2.2")}})
	<-n.Ready()
	stop()
	// The boot: interfaces are gone, and nobody says which nodes there are.
	run(t, "ip", "link", "del", overlayName(DefaultBridge))
	n, _ = startNetwork(t, c)
	select {
	case <-n.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	if out := run(t, "ip", "route"); !strings.Contains(out, "10.42.2.0/24 via 10.42.2.0 dev mote.1 onlink") {
		t.Errorf("routes:\n%s", out)
	}
	// An overlay's packets have the port a NAT may keep.
	link, err := netlink.LinkByName(overlayName(DefaultBridge))
	if err != nil {
		t.Fatal(err)
	}
	if v := link.(*netlink.Vxlan); v.PortLow != vxlanPort || v.PortHigh != vxlanPort+1 || v.Port != vxlanPort {
		t.Errorf("ports %d, %d to %d", v.Port, v.PortLow, v.PortHigh)
	}
}
