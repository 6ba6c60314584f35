package informer

import (
	"errors"
	"sync"

	"k8s.io/client-go/tools/cache"
)

// deferred holds the handlers of a gate that is not open yet.
type deferred struct {
	mu     sync.Mutex // guards what follows
	opened bool
	held   []*deferredHandler
}

// add registers a handler with add, now or once the gate is opened.
func (d *deferred) add(add func() (cache.ResourceEventHandlerRegistration, error)) (
	cache.ResourceEventHandlerRegistration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened {
		return add()
	}
	h := &deferredHandler{add: add}
	d.held = append(d.held, h)
	return h, nil
}

func (d *deferred) open() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened = true
	var errs []error
	for _, h := range d.held {
		errs = append(errs, h.register())
	}
	d.held = nil
	return errors.Join(errs...)
}

// deferredHandler is the registration of a handler that is added when the gate opens.
type deferredHandler struct {
	add func() (cache.ResourceEventHandlerRegistration, error)

	mu      sync.Mutex // guards what follows
	removed bool
	real    cache.ResourceEventHandlerRegistration
}

func (h *deferredHandler) register() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.removed {
		return nil
	}
	var err error
	h.real, err = h.add()
	return err
}

// remove returns the registration to remove, or nil if there is none yet and will be none.
func (h *deferredHandler) remove() cache.ResourceEventHandlerRegistration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removed = true
	return h.real
}

func (h *deferredHandler) registration() cache.ResourceEventHandlerRegistration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.real
}

// HasSynced implements cache.ResourceEventHandlerRegistration.
func (h *deferredHandler) HasSynced() bool {
	real := h.registration()
	return real != nil && real.HasSynced()
}

// HasSyncedChecker implements cache.ResourceEventHandlerRegistration. Call Done of the result only
// once the gate is open: before that, it returns nil, which blocks forever.
func (h *deferredHandler) HasSyncedChecker() cache.DoneChecker { return deferredChecker{h} }

type deferredChecker struct{ handler *deferredHandler }

func (c deferredChecker) Name() string {
	if real := c.handler.registration(); real != nil {
		return real.HasSyncedChecker().Name()
	}
	return "a gate that is not open yet"
}

func (c deferredChecker) Done() <-chan struct{} {
	if real := c.handler.registration(); real != nil {
		return real.HasSyncedChecker().Done()
	}
	return nil
}
