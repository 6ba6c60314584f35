package podnet

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// keepaliveInterval is below 30 seconds, the shortest UDP timeout of common routers.
const keepaliveInterval = 20 * time.Second

// discardPort has no listener: the ICMP error that comes back is traffic in the other direction.
const discardPort = 9

// keepMapped keeps the NAT mapping open if this node is behind a NAT, by sending a packet through
// the overlay to every peer at intervals: peers can reach the node only while the mapping exists.
func (n *Network) keepMapped(ctx context.Context) error {
	tick := time.NewTicker(keepaliveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n.mu.Lock()
		self, peers := n.nodes.Self, n.nodes.Peers
		n.mu.Unlock()
		if !self.Outside.IsValid() || n.cfg.Cluster.NetworkBackend != clusterconfig.BackendVXLAN {
			continue
		}
		p, err := n.plan(self, peers)
		if err != nil {
			// The loop of passes reports it.
			continue
		}
		for hop := range p.hops {
			touch(ctx, hop)
		}
	}
}

// touch sends one packet. Losing it does not matter: the next one follows.
func touch(ctx context.Context, ip netip.Addr) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(ip, discardPort).String())
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{0})
}
