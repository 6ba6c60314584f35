package informer

import (
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/tools/cache"
)

// Gate is an informer factory on top of a running one. Kubernetes' components add their event
// handlers while they are being built and expect the informers to start later. On a running factory
// events would reach them half built; through a Gate they arrive once Open is called.
//
// Close removes the handlers that were added through the gate. A component that ends before its
// informers needs that: they would go on to fill its queues, and an informer whose handler still
// waits for the gate to open never ends.
type Gate struct {
	informers.SharedInformerFactory
	filter   func(obj any) bool
	opened   chan struct{}
	openOnce sync.Once
	// deferred holds handlers back instead of events; nil if the gate holds events.
	deferred *deferred
	closed   chan struct{}

	mu       sync.Mutex // guards what follows
	isClosed bool
	handlers []registered
}

// registered is a handler that Close removes.
type registered struct {
	informer cache.SharedIndexInformer
	handle   cache.ResourceEventHandlerRegistration
}

var errClosed = errors.New("add event handler: its component has ended")

var _ informers.SharedInformerFactory = (*Gate)(nil)

// NewGate returns a closed gate on shared. Handlers see only objects for which filter returns true;
// an object that changes from true to false reaches them as deleted. A nil filter passes
// everything. Listers are not filtered.
func NewGate(shared informers.SharedInformerFactory, filter func(obj any) bool) *Gate {
	return &Gate{
		SharedInformerFactory: shared,
		filter:                filter,
		opened:                make(chan struct{}),
		closed:                make(chan struct{}),
	}
}

// NewDeferredGate returns a closed gate on shared that may stay closed for long: it queues no
// events. Its handlers are registered when it is opened and then receive every object that exists.
func NewDeferredGate(shared informers.SharedInformerFactory) *Gate {
	g := NewGate(shared, nil)
	g.deferred = &deferred{}
	return g
}

// Open lets events through, queued ones first.
func (g *Gate) Open() error {
	g.openOnce.Do(func() { close(g.opened) })
	if g.deferred == nil {
		return nil
	}
	return g.deferred.open()
}

// Close drops queued events and removes all handlers, and returns when none of them runs any more.
// It must not be called by a handler.
func (g *Gate) Close() error {
	g.mu.Lock()
	handlers := g.handlers
	g.handlers = nil
	if !g.isClosed {
		g.isClosed = true
		close(g.closed)
	}
	g.mu.Unlock()
	var errs []error
	for _, h := range handlers {
		errs = append(errs, cache.ShutDownEventHandler(h.informer, h.handle))
	}
	return errors.Join(errs...)
}

// InformerFor implements informers.SharedInformerFactory; every typed accessor comes through here.
func (g *Gate) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return gatedInformer{SharedIndexInformer: g.SharedInformerFactory.InformerFor(obj, newFunc), gate: g}
}

// ForResource implements informers.SharedInformerFactory.
func (g *Gate) ForResource(resource schema.GroupVersionResource) (informers.GenericInformer, error) {
	i, err := g.SharedInformerFactory.ForResource(resource)
	if err != nil {
		return nil, err
	}
	return gatedGenericInformer{GenericInformer: i, gate: g}, nil
}

type gatedGenericInformer struct {
	informers.GenericInformer
	gate *Gate
}

func (i gatedGenericInformer) Informer() cache.SharedIndexInformer {
	return gatedInformer{SharedIndexInformer: i.GenericInformer.Informer(), gate: i.gate}
}

// gatedInformer is one informer behind a gate.
type gatedInformer struct {
	cache.SharedIndexInformer
	gate *Gate
}

func (i gatedInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(h, cache.HandlerOptions{})
}

// AddEventHandlerWithResyncPeriod drops the period: the informer is started, so it would be ignored
// with a warning.
func (i gatedInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler,
	_ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

func (i gatedInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler,
	o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	o.ResyncPeriod = nil
	add := func() (cache.ResourceEventHandlerRegistration, error) {
		return i.gate.register(i.SharedIndexInformer, h, o)
	}
	if i.gate.deferred != nil {
		return i.gate.deferred.add(add)
	}
	return add()
}

func (i gatedInformer) RemoveEventHandler(handle cache.ResourceEventHandlerRegistration) error {
	if held, ok := handle.(*deferredHandler); ok {
		if handle = held.remove(); handle == nil {
			return nil
		}
	}
	i.gate.forget(handle)
	return i.SharedIndexInformer.RemoveEventHandler(handle)
}

// register adds a handler to an informer, to be removed by Close.
func (g *Gate) register(i cache.SharedIndexInformer, h cache.ResourceEventHandler,
	o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	if g.filter != nil {
		h = cache.FilteringResourceEventHandler{FilterFunc: g.filter, Handler: h}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed {
		return nil, errClosed
	}
	handle, err := i.AddEventHandlerWithOptions(gatedHandler{handler: h, opened: g.opened, closed: g.closed}, o)
	if err == nil {
		g.handlers = append(g.handlers, registered{informer: i, handle: handle})
	}
	return handle, err
}

// forget drops a handler that its component removes itself.
func (g *Gate) forget(handle cache.ResourceEventHandlerRegistration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handlers = slices.DeleteFunc(g.handlers, func(r registered) bool { return r.handle == handle })
}

// gatedHandler blocks until its gate is opened. Each handler has a goroutine and a queue of its own
// in the informer, so it holds up no other handler.
type gatedHandler struct {
	handler        cache.ResourceEventHandler
	opened, closed <-chan struct{}
}

// passes waits until the gate is opened or closed, and reports whether it is open.
func (h gatedHandler) passes() bool {
	select {
	case <-h.closed:
		return false
	default:
	}
	select {
	case <-h.opened:
		return true
	case <-h.closed:
		return false
	}
}

func (h gatedHandler) OnAdd(obj any, initial bool) {
	if h.passes() {
		h.handler.OnAdd(obj, initial)
	}
}

func (h gatedHandler) OnUpdate(before, after any) {
	if h.passes() {
		h.handler.OnUpdate(before, after)
	}
}

func (h gatedHandler) OnDelete(obj any) {
	if h.passes() {
		h.handler.OnDelete(obj)
	}
}
