package informer

import (
	"errors"
	"sync"

	"k8s.io/client-go/tools/cache"
)

// late holds the handlers of a view that is not open yet.
type late struct {
	mu     sync.Mutex // guards what follows
	opened bool
	held   []*heldHandler
}

// add registers a handler with add, now or once the view is opened.
func (l *late) add(add func() (cache.ResourceEventHandlerRegistration, error)) (cache.ResourceEventHandlerRegistration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened {
		return add()
	}
	h := &heldHandler{add: add}
	l.held = append(l.held, h)
	return h, nil
}

func (l *late) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened = true
	var errs []error
	for _, h := range l.held {
		errs = append(errs, h.register())
	}
	l.held = nil
	return errors.Join(errs...)
}

// heldHandler stands for the registration of a handler that is made later.
type heldHandler struct {
	add func() (cache.ResourceEventHandlerRegistration, error)

	mu      sync.Mutex // guards what follows
	removed bool
	real    cache.ResourceEventHandlerRegistration
}

func (h *heldHandler) register() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.removed {
		return nil
	}
	var err error
	h.real, err = h.add()
	return err
}

// remove returns the registration to remove, or nil if there is none yet and
// will be none.
func (h *heldHandler) remove() cache.ResourceEventHandlerRegistration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removed = true
	return h.real
}

func (h *heldHandler) registration() cache.ResourceEventHandlerRegistration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.real
}

// HasSynced implements cache.ResourceEventHandlerRegistration.
func (h *heldHandler) HasSynced() bool {
	real := h.registration()
	return real != nil && real.HasSynced()
}

// HasSyncedChecker implements cache.ResourceEventHandlerRegistration. Its Done
// is to be asked for when the view is open: before, it never ends.
func (h *heldHandler) HasSyncedChecker() cache.DoneChecker { return heldChecker{h} }

type heldChecker struct{ handler *heldHandler }

func (c heldChecker) Name() string {
	if real := c.handler.registration(); real != nil {
		return real.HasSyncedChecker().Name()
	}
	return "a view that is not open yet"
}

func (c heldChecker) Done() <-chan struct{} {
	if real := c.handler.registration(); real != nil {
		return real.HasSyncedChecker().Done()
	}
	return nil
}
