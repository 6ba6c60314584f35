package netproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// healthHandler serves /healthz and /livez as kube-proxy does: load balancers use the former to
// drain a node that is being removed. Upstream's own server is not used because it cannot be
// stopped.
func (p *Proxy) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { p.answerHealth(w, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { p.answerHealth(w, false) })
	return mux
}

// metricsHandler serves /proxyMode and /metrics as kube-proxy does. The registry belongs to the
// whole process; metrics of the API server must not be shown here, as they need authorization.
func (p *Proxy) metricsHandler(mode string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, mode)
	})
	mux.Handle("/metrics", metrics.HandlerFor(ownMetrics{legacyregistry.DefaultGatherer},
		metrics.HandlerOpts{ErrorHandling: metrics.ContinueOnError}))
	return mux
}

// ownMetrics are the metrics of the proxy and of the process.
type ownMetrics struct{ all metrics.Gatherer }

// Gather implements metrics.Gatherer.
func (o ownMetrics) Gather() ([]*dto.MetricFamily, error) {
	families, err := o.all.Gather()
	return slices.DeleteFunc(families, func(f *dto.MetricFamily) bool {
		name := f.GetName()
		return !strings.HasPrefix(name, "kubeproxy_") && !strings.HasPrefix(name, "process_") &&
			!strings.HasPrefix(name, "go_")
	}), err
}

// serveHTTP serves handler on address until ctx ends; what names it in logs. An empty address means
// nothing is served.
func (p *Proxy) serveHTTP(ctx context.Context, what, address string, handler http.Handler) error {
	if address == "" {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		// Another kube-proxy on the host must not keep services from working.
		p.log.Warn("proxy's "+what+" is not served", zap.String("address", address), zap.Error(err))
		return nil
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: shutdownTimeout}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := server.Shutdown(end); err != nil {
			_ = server.Close() // the remaining requests had their time
		}
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serve proxy's %s: %w", what, err)
	}
	// Serve returns when Shutdown begins.
	<-ended
	return nil
}

func (p *Proxy) answerHealth(w http.ResponseWriter, withNode bool) {
	health := p.health.Health()
	healthy := health.Healthy
	if withNode {
		eligible := p.health.NodeEligible()
		health.NodeEligible = &eligible
		healthy = healthy && eligible
	}
	if healthy {
		health.LastUpdated = health.CurrentTime
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	// Fails only if the client is gone.
	_ = json.NewEncoder(w).Encode(health)
}
