package netproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"

	"go.uber.org/zap"
)

// serveHealth answers /healthz and /livez as kube-proxy does: load balancers use the first to leave out a node that is being
// removed. Upstream's own server is not used because it cannot be stopped.
func (p *Proxy) serveHealth(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { p.answerHealth(w, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { p.answerHealth(w, false) })
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.cfg.HealthzAddress)
	if err != nil {
		// Another kube-proxy beside us must not keep services from working.
		p.log.Warn("proxy health is not served", zap.String("address", p.cfg.HealthzAddress), zap.Error(err))
		return nil
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: shutdownTimeout}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		_ = server.Shutdown(end)
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve proxy health: %w", err)
	}
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
	// The asker is gone if this fails.
	_ = json.NewEncoder(w).Encode(health)
}
