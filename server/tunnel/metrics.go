package tunnel

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count what is open.
type counters struct{ tunnels, streams prometheus.Gauge }

func newCounters() counters {
	return counters{
		tunnels: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mote_tunnel_open",
			Help: "Tunnels that nodes have to this server."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mote_tunnel_streams",
			Help: "Connections that go through tunnels."}),
	}
}

func (c counters) register(r prometheus.Registerer) error {
	for _, each := range []prometheus.Collector{c.tunnels, c.streams} {
		if err := r.Register(each); err != nil {
			return fmt.Errorf("register metrics of tunnels: %w", err)
		}
	}
	return nil
}
