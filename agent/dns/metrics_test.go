package dns

import (
	"net/http/httptest"
	"regexp"
	"strconv"
	"testing"

	"k8s.io/component-base/metrics/legacyregistry"
)

// metric reads one value off the /metrics that all components of the process share.
func metric(t *testing.T, series string) float64 {
	t.Helper()
	w := httptest.NewRecorder()
	legacyregistry.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(w.Body.String())
	if found == nil {
		return 0
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestServer_Metrics_AreSharedByServersOfOneProcess(t *testing.T) {
	up := startUpstream(t)
	settings := settingsMap(map[string]string{"upstreams": up.addr.String()})
	const answered = `mote_dns_requests_total{proto="udp",rcode="NOERROR",source="forward"}`
	const misses = `mote_dns_forward_total{event="cache_miss"}`
	before, missesBefore, cachedBefore := metric(t, answered), metric(t, misses), metric(t, "mote_dns_cache_bytes")
	t.Run("servers", func(t *testing.T) {
		for range 2 {
			s, _ := startServer(t, nil, settings)
			waitForUpstream(t, s)
			query(t, s, "udp", "www.example.com", "A", nil)
		}
		if got := metric(t, answered) - before; got != 2 {
			t.Errorf("%v queries are counted, want one of each server", got)
		}
		if got := metric(t, misses) - missesBefore; got != 2 {
			t.Errorf("%v cache misses are counted, want one of each server", got)
		}
		if metric(t, "mote_dns_cache_bytes") <= cachedBefore {
			t.Error("the cached answers are not counted")
		}
	})
	if got := metric(t, "mote_dns_cache_bytes"); got != cachedBefore {
		t.Errorf("%v bytes are counted as cached after the servers stopped, want %v", got, cachedBefore)
	}
}
