package dns

import (
	"fmt"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// counters count what the server does.
type counters struct {
	requests *prometheus.CounterVec
	events   *prometheus.CounterVec
}

func newCounters() *counters {
	return &counters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mote_dns_requests_total", Help: "Questions answered, by transport, by who knew the answer, and by its code.",
		}, []string{"proto", "source", "rcode"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mote_dns_forward_total", Help: "Events of forwarding: cache_hit, cache_miss, cache_stale, upstream_query, upstream_failure.",
		}, []string{"event"}),
	}
}

func (c *counters) register(r prometheus.Registerer, cache *answerCache) error {
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mote_dns_cache_bytes", Help: "Bytes of cached foreign answers."}, func() float64 {
		_, bytes := cache.size()
		return float64(bytes)
	})
	for _, each := range []prometheus.Collector{c.requests, c.events, size} {
		if err := r.Register(each); err != nil {
			return fmt.Errorf("register DNS metrics: %w", err)
		}
	}
	return nil
}

func (c *counters) request(udp bool, source string, rcode int) {
	proto := "tcp"
	if udp {
		proto = "udp"
	}
	text, ok := wire.RcodeToString[rcode]
	if !ok {
		text = "other"
	}
	c.requests.WithLabelValues(proto, source, text).Inc()
}

func (c *counters) event(what string) { c.events.WithLabelValues(what).Inc() }
