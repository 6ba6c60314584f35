package upstream

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// served returns the value that /metrics has for a gauge, or -1 if it has none.
func served(t *testing.T, name string) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

func TestMetrics_Close_MakesRoomForTheNext(t *testing.T) {
	const name = "mote_test_gauge"
	gauge := func(v float64) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "For a test."})
		g.Set(v)
		return g
	}
	var first, beside, next Metrics
	first.MustRegister(gauge(1))
	beside.MustRegister(gauge(2))
	if got := served(t, name); got != 1 {
		t.Errorf("two at once: served %v, want the first one's 1", got)
	}
	beside.Close()
	if got := served(t, name); got != 1 {
		t.Errorf("after the second one's end: served %v, want 1", got)
	}
	first.Close()
	if got := served(t, name); got != -1 {
		t.Errorf("after both: served %v, want nothing", got)
	}
	own := gauge(3)
	next.MustRegister(own)
	if got := served(t, name); got != 3 {
		t.Errorf("the next one: served %v, want 3", got)
	}
	if !next.Unregister(own) || next.Unregister(own) || served(t, name) != -1 {
		t.Error("unregistering one collector has to work once")
	}
}
