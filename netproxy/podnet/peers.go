package podnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

const (
	// vxlanPort is the UDP port of the overlay, Linux's default. It is the source port as well, so
	// that both directions are one flow to a NAT that preserves ports, and answers get in.
	vxlanPort = 8472
	// vxlanID is the VXLAN network identifier.
	vxlanID = 1
	// overlaySuffix is appended to the bridge's name.
	overlaySuffix = ".1"
)

// overlayName is the name of the VXLAN interface that belongs to a bridge.
func overlayName(bridge string) string {
	base := strings.TrimRight(bridge, "0123456789")
	if bridge != DefaultBridge {
		base = bridge[:min(len(bridge), 15-len(overlaySuffix))]
	}
	return base + overlaySuffix
}

// peerLink is where the overlay reaches another node.
type peerLink struct {
	outer netip.Addr       // where packets to the node are sent
	mac   net.HardwareAddr // the node's VXLAN interface
}

// peerRoute is a route to the pods of another node.
type peerRoute struct {
	dst netip.Prefix
	via netip.Addr
}

// plan is everything the kernel has to know about other nodes.
type plan struct {
	// local is this node's own address in the overlay; invalid means no overlay.
	local netip.Addr
	mac   net.HardwareAddr
	// addrs are the VXLAN interface's own addresses.
	addrs []netip.Addr
	links []peerLink
	// hops maps the overlay address of each next hop to the hardware address of its peer.
	hops   map[netip.Addr]net.HardwareAddr
	routes []peerRoute
	// skipped says which peers are left out and why.
	skipped []string
}

// overlayMAC derives the hardware address of a node's VXLAN interface from its name, so that nodes
// need not exchange it. The hashed text is part of the protocol between nodes.
func overlayMAC(node string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("mote tunnel " + node))
	mac := net.HardwareAddr(sum[:6])
	// Locally administered, one receiver.
	mac[0] = mac[0]&^1 | 2
	return mac
}

// planPeers derives the plan for the backend. It is a pure function.
func planPeers(backend clusterconfig.Backend, self Node, peers []Node) plan {
	var p plan
	if backend == clusterconfig.BackendNone {
		return p
	}
	local := firstAddr(self.Addrs)
	for _, peer := range peers {
		if peer.Name == self.Name || len(peer.PodCIDRs) == 0 {
			// Not a member yet: SetNodes is called again when it has a range.
			continue
		}
		if overlaps(self.PodCIDRs, peer.PodCIDRs) {
			p.skipped = append(p.skipped, peer.Name+": its pod CIDR is this node's own")
			continue
		}
		switch backend {
		case clusterconfig.BackendHostGW:
			p.addDirect(peer)
		default:
			p.addOverlay(local, self, peer)
		}
	}
	if backend == clusterconfig.BackendVXLAN && len(p.links) > 0 {
		p.local, p.mac = local, overlayMAC(self.Name)
		for _, c := range self.PodCIDRs {
			p.addrs = append(p.addrs, c.Masked().Addr())
		}
	}
	return p
}

func overlaps(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(x netip.Prefix) bool { return slices.ContainsFunc(b, x.Overlaps) })
}

// addDirect adds routes to a peer on the same link.
func (p *plan) addDirect(peer Node) {
	for _, c := range peer.PodCIDRs {
		i := slices.IndexFunc(peer.Addrs, func(a netip.Addr) bool { return a.Is6() == c.Addr().Is6() })
		if i < 0 {
			p.skipped = append(p.skipped, fmt.Sprintf("%s: it has no address to reach %s by", peer.Name, c))
			continue
		}
		p.routes = append(p.routes, peerRoute{c.Masked(), peer.Addrs[i]})
	}
}

// addOverlay adds a peer reached through the overlay. The overlay has one address family, that of
// this node's first address.
func (p *plan) addOverlay(local netip.Addr, self, peer Node) {
	addrs := peer.Addrs
	if peer.behindNAT(self) {
		addrs = []netip.Addr{peer.Outside}
	}
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return local.IsValid() && a.Is6() == local.Is6() })
	if i < 0 {
		p.skipped = append(p.skipped, peer.Name+": it and this node have no addresses of the same family")
		return
	}
	mac := overlayMAC(peer.Name)
	p.links = append(p.links, peerLink{addrs[i], mac})
	if p.hops == nil {
		p.hops = make(map[netip.Addr]net.HardwareAddr)
	}
	for _, c := range peer.PodCIDRs {
		hop := c.Masked().Addr()
		p.hops[hop] = mac
		p.routes = append(p.routes, peerRoute{c.Masked(), hop})
	}
}

// behindNAT reports whether n's own address is not reachable from another node. Behind the same NAT
// it is.
func (n Node) behindNAT(from Node) bool { return n.Outside.IsValid() && n.Outside != from.Outside }

// reportSkipped logs which nodes are left out.
func (n *Network) reportSkipped(skipped []string) {
	if len(skipped) == 0 {
		if n.skipped.Recovered() {
			n.log.Info("pods of all nodes are reachable again")
		}
		return
	}
	if err := errors.New(strings.Join(skipped, "; ")); n.skipped.News(err) {
		n.log.Warn("pods of some nodes are not reachable", zap.Error(err))
	}
}

// plan is planPeers for the peers that are believed.
func (n *Network) plan(self Node, peers []Node) (plan, error) {
	n.mu.Lock()
	servers := n.nodes.Servers
	n.mu.Unlock()
	machines, err := n.machines(servers)
	if err != nil {
		return plan{}, err
	}
	believed, refused := claims{
		cluster:  n.cfg.Cluster,
		self:     self,
		machines: machines,
		mac:      overlayMAC,
	}.believe(peers)
	p := planPeers(n.cfg.Cluster.NetworkBackend, self, believed)
	p.skipped = append(refused, p.skipped...)
	return p, nil
}

// ensurePeers applies the plan to overlay and routes.
func (n *Network) ensurePeers(ctx context.Context, self Node, peers []Node, mtu int) error {
	p, err := n.plan(self, peers)
	if err != nil {
		return err
	}
	n.reportSkipped(p.skipped)
	// Remove what a run with another backend left: its routes would take precedence, or lead
	// nowhere.
	if n.cfg.Cluster.NetworkBackend != clusterconfig.BackendVXLAN {
		return errors.Join(removeOverlay(overlayName(n.cfg.Bridge)), ensureDirectRoutes(p.routes))
	}
	if !p.local.IsValid() {
		// A single node needs no overlay.
		return errors.Join(removeOverlay(overlayName(n.cfg.Bridge)), ensureDirectRoutes(nil))
	}
	if err := errors.Join(ensureDirectRoutes(nil), ensureOverlay(overlayName(n.cfg.Bridge), p, mtu)); err != nil {
		return err
	}
	if self.Outside.IsValid() {
		// The NAT lets peers in once it has seen packets to them.
		for hop := range p.hops {
			touch(ctx, hop)
		}
	}
	return nil
}
