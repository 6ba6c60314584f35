package main

import (
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// web is the front: stateless, so that it can be scaled and rolled.
type web struct {
	configDir string // the mounted ConfigMap; read on each request, so that a change shows without a restart
	motd      string // from the ConfigMap through the environment: fixed for the life of the container
	password  string // from the Secret
	ledgerURL string
	hostname  string
	started   time.Time
	startup   time.Duration // how long the start-up probe is told to wait

	unready, dead atomic.Bool // switched by an operator to see what the probes do
}

func newWeb(env func(string) string) (*web, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read host name: %w", err)
	}
	startup := time.Second
	if s := env("STARTUP_TIME"); s != "" {
		if startup, err = time.ParseDuration(s); err != nil {
			return nil, fmt.Errorf("read STARTUP_TIME: %w", err)
		}
	}
	return &web{
		configDir: env("CONFIG_DIR"),
		motd:      env("MOTD"),
		password:  env("ADMIN_PASSWORD"),
		ledgerURL: env("LEDGER_URL"),
		hostname:  host,
		started:   time.Now(),
		startup:   startup,
	}, nil
}

func (s *web) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, version) })
	mux.HandleFunc("GET /hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.hostname) })
	mux.HandleFunc("GET /client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("GET /orders", s.forward)
	mux.HandleFunc("POST /orders", s.forward)
	mux.HandleFunc("GET /slow", s.slow)
	mux.HandleFunc("GET /burn", s.burn)
	mux.HandleFunc("POST /admin/{switch}", s.admin)
	mux.HandleFunc("GET /probe/{kind}", s.probe)
	return logged(mux)
}

func (s *web) home(w http.ResponseWriter, _ *http.Request) {
	greeting, err := os.ReadFile(filepath.Join(s.configDir, "greeting"))
	if err != nil {
		http.Error(w, "no greeting: "+err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%s\n%s\nshop %s on %s\n", strings.TrimSpace(string(greeting)), s.motd, version, s.hostname)
}

// forward passes an order, or the question for all orders, on to the ledger.
func (s *web) forward(w http.ResponseWriter, r *http.Request) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, s.ledgerURL+"/orders", r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, "ledger: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		fmt.Println("answer cut short:", err)
	}
}

// slow answers after a while: what a graceful shutdown must not cut off.
func (s *web) slow(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(d):
		fmt.Fprintln(w, "done")
	case <-r.Context().Done():
	}
}

// burn keeps one core busy, to make an autoscaler act.
func (s *web) burn(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for end := time.Now().Add(d); time.Now().Before(end) && r.Context().Err() == nil; {
	}
	fmt.Fprintln(w, "done")
}

func (s *web) admin(w http.ResponseWriter, r *http.Request) {
	_, password, _ := r.BasicAuth()
	if s.password == "" || subtle.ConstantTimeCompare([]byte(password), []byte(s.password)) != 1 {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	switch r.PathValue("switch") {
	case "unready":
		s.unready.Store(true)
	case "ready":
		s.unready.Store(false)
	case "die":
		s.dead.Store(true)
	default:
		http.NotFound(w, r)
	}
}

func (s *web) probe(w http.ResponseWriter, r *http.Request) {
	failed := ""
	switch r.PathValue("kind") {
	case "startup":
		if time.Since(s.started) < s.startup {
			failed = "still starting"
		}
	case "ready":
		if s.unready.Load() {
			failed = "switched to unready"
		}
	case "live":
		if s.dead.Load() {
			failed = "switched to dead"
		}
	default:
		http.NotFound(w, r)
		return
	}
	if failed != "" {
		http.Error(w, failed, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// logged prints a line a request, but not for probes: they would drown the rest.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/probe/") {
			fmt.Println(r.Method, r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
}
