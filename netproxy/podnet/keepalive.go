package podnet

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// keepaliveInterval is below the thirty seconds after which the stingiest routers forget a UDP flow.
const keepaliveInterval = 20 * time.Second

// discardPort is where nobody listens: the answer, that nobody does, is traffic in the other direction.
const discardPort = 9

// keepMapped sends something through the overlay to every peer from time to time, if this node sits behind a NAT: others can
// reach it only while the NAT remembers it.
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
		self, peers := n.self, n.peers
		n.mu.Unlock()
		if !self.Outside.IsValid() || n.cfg.Cluster.NetworkBackend != clusterconfig.BackendVXLAN {
			continue
		}
		for hop := range planPeers(n.cfg.Cluster.NetworkBackend, self, peers).hops {
			touch(ctx, hop)
		}
	}
}

// touch sends one empty packet. That it does not arrive is not worth a word; the next one follows.
func touch(ctx context.Context, ip netip.Addr) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(ip, discardPort).String())
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{0})
}
