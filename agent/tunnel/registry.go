package tunnel

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// signal can fire any number of times; each wait returns at the next one.
type signal struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

func newSignal() *signal { return &signal{next: make(chan struct{})} }

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.next)
	s.next = make(chan struct{})
}

// registry counts the tunnels to each server process. The zero value is empty.
type registry struct {
	mu      sync.Mutex // guards the fields below
	tunnels map[string]int
	gone    chan struct{} // closed when a server's last tunnel ends
}

func (r *registry) add(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tunnels == nil {
		r.tunnels = map[string]int{}
	}
	r.tunnels[server]++
}

func (r *registry) remove(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tunnels[server]--
	if r.tunnels[server] > 0 {
		return
	}
	delete(r.tunnels, server)
	if r.gone != nil {
		close(r.gone)
		r.gone = nil
	}
}

func (r *registry) has(server string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tunnels[server] > 0
}

func (r *registry) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.tunnels))
}

// waitGone returns once there is no tunnel to the server; false if ctx ended.
func (r *registry) waitGone(ctx context.Context, server string) bool {
	for {
		r.mu.Lock()
		if r.tunnels[server] == 0 {
			r.mu.Unlock()
			return ctx.Err() == nil
		}
		if r.gone == nil {
			r.gone = make(chan struct{})
		}
		gone := r.gone
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return false
		case <-gone:
		}
	}
}

// workers waits for goroutines that net/http starts. The zero value is ready.
type workers struct {
	mu     sync.Mutex // guards closed; no worker begins once it is set
	closed bool
	group  sync.WaitGroup
}

// begin adds a worker. It returns false after wait was called, as nothing would wait for the
// worker.
func (w *workers) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.group.Add(1)
	}
	return !w.closed
}

func (w *workers) end() { w.group.Done() }

func (w *workers) wait() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.group.Wait()
}
