package podnet

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// claims decides which nodes are believed. What a Node object says was checked when it was written,
// but not by a server of an older mote, nor where an administrator wrote it; and a wrong route can
// cut this node off from the server that would take it back.
type claims struct {
	cluster clusterconfig.Config
	self    Node
	// machines are this machine's own addresses and gateways, and those of servers. They are never
	// routed to pods.
	machines []machine
	// mac is overlayMAC, except in tests.
	mac func(node string) net.HardwareAddr
}

// machine is an address that must stay reachable outside of the pod network.
type machine struct {
	addr netip.Addr
	of   string
}

// What a machine's address is of.
const (
	thisMachine = "this machine"
	aGateway    = "a gateway"
	aServer     = "a server"
)

// believe returns the peers whose claims hold, in the order given, and why it leaves out the
// others. Of two that claim the same the older one is believed. It is a pure function.
func (c claims) believe(peers []Node) (believed []Node, refused []string) {
	byAge := slices.Clone(peers)
	slices.SortStableFunc(byAge, func(a, b Node) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Name, b.Name))
	})
	older := []Node{c.self}
	why := make(map[string]string)
	for _, peer := range byAge {
		if peer.Name == c.self.Name {
			continue
		}
		objection := c.object(&peer, older)
		if objection != "" {
			why[peer.Name] = objection
			continue
		}
		older = append(older, peer)
	}
	for _, peer := range peers {
		if objection, ok := why[peer.Name]; ok {
			refused = append(refused, peer.Name+": "+objection)
			continue
		}
		if i := slices.IndexFunc(older[1:], func(n Node) bool { return n.Name == peer.Name }); i >= 0 {
			believed = append(believed, older[1+i])
		}
	}
	return believed, refused
}

// object returns what speaks against a peer, "" for nothing. It drops addresses of the peer at
// which its machine cannot be.
func (c claims) object(peer *Node, older []Node) string {
	for _, r := range peer.PodCIDRs {
		if objection := c.objectRange(r, older); objection != "" {
			return objection
		}
	}
	if len(peer.PodCIDRs) == 0 {
		return ""
	}
	for _, other := range older {
		if slices.Equal(c.mac(other.Name), c.mac(peer.Name)) {
			return "the hardware address of its name is also that of node " + other.Name
		}
	}
	if peer.behindNAT(c.self) && c.cluster.NetworkBackend != clusterconfig.BackendHostGW {
		return c.objectAddress(peer.Outside)
	}
	var addrs []netip.Addr
	var unusable string
	for _, a := range peer.Addrs {
		objection := c.objectAddress(a)
		if objection == "" {
			addrs = append(addrs, a)
		}
		unusable = cmp.Or(unusable, objection)
	}
	peer.Addrs = addrs
	if len(addrs) == 0 {
		return unusable
	}
	return ""
}

func (c claims) objectRange(r netip.Prefix, older []Node) string {
	if !slices.ContainsFunc(c.cluster.ClusterCIDRs, func(of netip.Prefix) bool {
		return of.Bits() <= r.Bits() && of.Contains(r.Addr())
	}) {
		return fmt.Sprintf("its pod CIDR %s is outside the cluster's, %s", r,
			clusterconfig.Join(c.cluster.ClusterCIDRs))
	}
	if overlaps(c.self.PodCIDRs, []netip.Prefix{r}) {
		return "its pod CIDR is this node's own"
	}
	for _, other := range older {
		if overlaps(other.PodCIDRs, []netip.Prefix{r}) {
			return fmt.Sprintf("its pod CIDR %s overlaps that of node %s, which is older", r, other.Name)
		}
	}
	for _, m := range c.machines {
		if r.Contains(m.addr) {
			return fmt.Sprintf("its pod CIDR %s holds %s, the address of %s", r, m.addr, m.of)
		}
	}
	for _, other := range older {
		for _, a := range other.Addrs {
			if r.Contains(a) {
				return fmt.Sprintf("its pod CIDR %s holds %s, the address of node %s", r, a, other.Name)
			}
		}
	}
	return ""
}

// objectAddress returns why packets to a peer are not sent to an address.
func (c claims) objectAddress(a netip.Addr) string {
	switch {
	case !a.IsGlobalUnicast():
		return fmt.Sprintf("its address %s is not that of one machine", a)
	case slices.ContainsFunc(c.cluster.Ranges(), func(r netip.Prefix) bool { return r.Contains(a) }):
		return fmt.Sprintf("its address %s is in the ranges of pods and services", a)
	case slices.Contains(c.self.Addrs, a), slices.Contains(c.machines, machine{a, thisMachine}):
		return fmt.Sprintf("its address %s is this node's own", a)
	}
	return ""
}
