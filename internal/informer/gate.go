package informer

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/tools/cache"
)

// Gate is an informer factory on top of a running one. Kubernetes' components add their event
// handlers while they are being built and expect the informers to start later. On a running factory
// events would reach them half built; through a Gate they arrive once Open is called.
type Gate struct {
	informers.SharedInformerFactory
	filter   func(obj any) bool
	opened   chan struct{}
	openOnce sync.Once
	// deferred holds handlers back instead of events; nil if the gate holds events.
	deferred *deferred
}

var _ informers.SharedInformerFactory = (*Gate)(nil)

// NewGate returns a closed gate on shared. Handlers see only objects for which filter returns true;
// an object that changes from true to false reaches them as deleted. A nil filter passes everything.
// Listers are not filtered.
func NewGate(shared informers.SharedInformerFactory, filter func(obj any) bool) *Gate {
	return &Gate{SharedInformerFactory: shared, filter: filter, opened: make(chan struct{})}
}

// NewDeferredGate returns a closed gate on shared that may stay closed for long: it queues no events.
// Its handlers are registered when it is opened and then receive every object that exists.
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

// InformerFor implements informers.SharedInformerFactory; every typed accessor
// comes through here.
func (g *Gate) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return gatedInformer{SharedIndexInformer: g.SharedInformerFactory.InformerFor(obj, newFunc), gate: g}
}

// gatedInformer is one informer behind a gate.
type gatedInformer struct {
	cache.SharedIndexInformer
	gate *Gate
}

func (i gatedInformer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(h, cache.HandlerOptions{})
}

// AddEventHandlerWithResyncPeriod drops the period: the informer is started,
// so it would be ignored with a warning.
func (i gatedInformer) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

func (i gatedInformer) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	o.ResyncPeriod = nil
	add := func() (cache.ResourceEventHandlerRegistration, error) {
		return i.SharedIndexInformer.AddEventHandlerWithOptions(i.gate.wrap(h), o)
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
	return i.SharedIndexInformer.RemoveEventHandler(handle)
}

func (g *Gate) wrap(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	if g.filter != nil {
		h = cache.FilteringResourceEventHandler{FilterFunc: g.filter, Handler: h}
	}
	return gatedHandler{handler: h, opened: g.opened}
}

// gatedHandler blocks until its gate is opened. Each handler has a goroutine and a queue of its own
// in the informer, so it holds up no other handler.
type gatedHandler struct {
	handler cache.ResourceEventHandler
	opened  <-chan struct{}
}

func (h gatedHandler) OnAdd(obj any, initial bool) {
	<-h.opened
	h.handler.OnAdd(obj, initial)
}

func (h gatedHandler) OnUpdate(before, after any) {
	<-h.opened
	h.handler.OnUpdate(before, after)
}

func (h gatedHandler) OnDelete(obj any) {
	<-h.opened
	h.handler.OnDelete(obj)
}
