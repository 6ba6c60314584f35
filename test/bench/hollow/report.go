package main

import (
	"encoding/json"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// report is how far the nodes are. It answers HTTP with State.
type report struct {
	nodes  int
	begin  time.Time
	missed atomic.Int64 // heartbeats

	mu         sync.Mutex // guards what follows
	handshakes []time.Duration
	joins      []time.Duration
	took       time.Duration
}

// State is what the report answers.
type State struct {
	Nodes  int `json:"nodes"`
	Joined int `json:"joined"`
	// Seconds is from the start until the last node had joined.
	Seconds float64 `json:"seconds"`
	// Handshake is from a node's first step until it has its certificate, Join until it is
	// registered, Ready and knows the cluster.
	Handshake Spread `json:"handshake"`
	Join      Spread `json:"join"`
	// Missed counts heartbeats that did not get through for so long that a kubelet would give up
	// its connection.
	Missed     int64 `json:"missed"`
	Goroutines int   `json:"goroutines"`
}

// Spread is of seconds.
type Spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func newReport(nodes int) *report { return &report{nodes: nodes, begin: time.Now()} }

func (r *report) joined(handshake, join time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handshakes = append(r.handshakes, handshake)
	r.joins = append(r.joins, join)
	r.took = time.Since(r.begin)
}

// ServeHTTP implements http.Handler.
func (r *report) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	s := State{
		Nodes:      r.nodes,
		Joined:     len(r.joins),
		Seconds:    r.took.Seconds(),
		Handshake:  spread(r.handshakes),
		Join:       spread(r.joins),
		Missed:     r.missed.Load(),
		Goroutines: runtime.NumGoroutine(),
	}
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	// Who asked and went away has no use for an error.
	_ = json.NewEncoder(w).Encode(s)
}

func spread(of []time.Duration) Spread {
	if len(of) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(of))
	at := func(share float64) float64 {
		return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))].Seconds()
	}
	return Spread{P50: at(0.5), P99: at(0.99), Max: sorted[len(sorted)-1].Seconds()}
}
