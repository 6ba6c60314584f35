package upstream

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// Metrics registers a part's collectors with upstream's registry, which API server, kubelet and
// service proxy serve under /metrics, and takes them out again when the part stops. The registry
// holds one collector of a name: while two parts of one kind run in a process, it has the first
// one's numbers. The zero value is ready.
type Metrics struct {
	mu         sync.Mutex
	registered []prometheus.Collector
}

var _ prometheus.Registerer = (*Metrics)(nil)

// Register implements prometheus.Registerer.
func (m *Metrics) Register(c prometheus.Collector) error {
	err := legacyregistry.Registerer().Register(c)
	var taken prometheus.AlreadyRegisteredError
	switch {
	case errors.As(err, &taken):
		return nil
	case err != nil:
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registered = append(m.registered, c)
	return nil
}

// MustRegister implements prometheus.Registerer.
func (m *Metrics) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := m.Register(c); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer.
func (m *Metrics) Unregister(c prometheus.Collector) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, own := range m.registered {
		if own == c {
			m.registered = append(m.registered[:i], m.registered[i+1:]...)
			return legacyregistry.Registerer().Unregister(c)
		}
	}
	return false
}

// Close unregisters everything that was registered through m.
func (m *Metrics) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.registered {
		legacyregistry.Registerer().Unregister(c)
	}
	m.registered = nil
}
