package informer

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/tools/cache"
)

// View is an informer factory on top of a running one. Components of Kubernetes
// add their event handlers while they are built, counting on informers that
// are started later; on a running factory, events would reach them half made.
// Through a View they come once Open is called.
type View struct {
	informers.SharedInformerFactory
	filter func(obj any) bool
	gate   chan struct{}
	open   sync.Once
	// late holds handlers back instead of events; nil where events are.
	late *late
}

var _ informers.SharedInformerFactory = (*View)(nil)

// NewView returns a closed view of shared. filter, if not nil, says of each
// object whether handlers may hear of it: one that changes from yes to no
// reaches them as deleted. Listers are not filtered.
func NewView(shared informers.SharedInformerFactory, filter func(obj any) bool) *View {
	return &View{SharedInformerFactory: shared, filter: filter, gate: make(chan struct{})}
}

// NewLateView returns a closed view of shared that may stay closed for long:
// until it is opened nothing is kept for its handlers, which then hear of all
// that is there.
func NewLateView(shared informers.SharedInformerFactory) *View {
	v := NewView(shared, nil)
	v.late = &late{}
	return v
}

// Open lets events through, those that waited first.
func (v *View) Open() error {
	v.open.Do(func() { close(v.gate) })
	if v.late == nil {
		return nil
	}
	return v.late.open()
}

// InformerFor implements informers.SharedInformerFactory; every typed accessor
// comes through here.
func (v *View) InformerFor(obj runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	return viewed{SharedIndexInformer: v.SharedInformerFactory.InformerFor(obj, newFunc), view: v}
}

// viewed is one informer of a view.
type viewed struct {
	cache.SharedIndexInformer
	view *View
}

func (i viewed) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandlerWithOptions(h, cache.HandlerOptions{})
}

// AddEventHandlerWithResyncPeriod drops the period: the informer is started,
// so it would be ignored with a warning.
func (i viewed) AddEventHandlerWithResyncPeriod(h cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return i.AddEventHandler(h)
}

func (i viewed) AddEventHandlerWithOptions(h cache.ResourceEventHandler, o cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	o.ResyncPeriod = nil
	add := func() (cache.ResourceEventHandlerRegistration, error) {
		return i.SharedIndexInformer.AddEventHandlerWithOptions(i.view.wrap(h), o)
	}
	if i.view.late != nil {
		return i.view.late.add(add)
	}
	return add()
}

func (i viewed) RemoveEventHandler(handle cache.ResourceEventHandlerRegistration) error {
	if held, ok := handle.(*heldHandler); ok {
		if handle = held.remove(); handle == nil {
			return nil
		}
	}
	return i.SharedIndexInformer.RemoveEventHandler(handle)
}

func (v *View) wrap(h cache.ResourceEventHandler) cache.ResourceEventHandler {
	if v.filter != nil {
		h = cache.FilteringResourceEventHandler{FilterFunc: v.filter, Handler: h}
	}
	return gated{handler: h, gate: v.gate}
}

// gated holds events until its gate is closed. Each handler has a goroutine
// and a queue of its own in the informer, so nobody else waits.
type gated struct {
	handler cache.ResourceEventHandler
	gate    <-chan struct{}
}

func (g gated) OnAdd(obj any, initial bool) {
	<-g.gate
	g.handler.OnAdd(obj, initial)
}

func (g gated) OnUpdate(before, after any) {
	<-g.gate
	g.handler.OnUpdate(before, after)
}

func (g gated) OnDelete(obj any) {
	<-g.gate
	g.handler.OnDelete(obj)
}
