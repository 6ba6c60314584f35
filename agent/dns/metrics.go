package dns

import (
	"errors"
	"fmt"

	wire "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// counters count what the servers of this process do.
type counters struct {
	requests *prometheus.CounterVec
	events   *prometheus.CounterVec
	cached   prometheus.Gauge
}

func newCounters() *counters {
	return &counters{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mote_dns_requests_total",
			Help: "Queries answered, by transport, by the source of the answer, and by its code.",
		}, []string{"proto", "source", "rcode"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mote_dns_forward_total",
			Help: "Events of forwarding: cache_hit, cache_miss, cache_stale, upstream_query, upstream_failure.",
		}, []string{"event"}),
		cached: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mote_dns_cache_bytes",
			Help: "Bytes of cached foreign answers."}),
	}
}

// register registers c and returns the counters to use: those of an earlier server if it registered
// its own before. They are never unregistered, so that they keep counting when a server is
// replaced.
func (c *counters) register(r prometheus.Registerer) (*counters, error) {
	requests, err := registerOne(r, c.requests)
	if err != nil {
		return nil, err
	}
	events, err := registerOne(r, c.events)
	if err != nil {
		return nil, err
	}
	cached, err := registerOne(r, c.cached)
	if err != nil {
		return nil, err
	}
	return &counters{requests: requests, events: events, cached: cached}, nil
}

func registerOne[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	err := r.Register(c)
	if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("register DNS metrics: %w", err)
	}
	return c, nil
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
