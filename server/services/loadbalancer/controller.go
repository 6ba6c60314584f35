package loadbalancer

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/mote-dev/mote/internal/hostports"
	"github.com/mote-dev/mote/internal/retry"
)

const (
	// settle is how long changes are collected: a rollout or a node that joins brings many.
	settle = 50 * time.Millisecond
	// Pauses before a service is tried again that could not be written, or that something else
	// writes, too.
	firstRetry, lastRetry = 100 * time.Millisecond, 30 * time.Second
	// hostPortIndex is the index of pods with host ports.
	hostPortIndex = "mote.dev/host-ports"
)

// Config is what a controller needs.
type Config struct {
	// Client may update the status of services and create events.
	Client kubernetes.Interface
	// Informers are shared; their owner runs them.
	Informers informers.SharedInformerFactory
	Logger    *zap.Logger
}

// Controller keeps the addresses of load balancers.
type Controller struct {
	config   Config
	services corelisters.ServiceLister
	nodes    corelisters.NodeLister
	pods     cache.Indexer
	slices   discoverylisters.EndpointSliceLister
	handled  []handled
	poked    chan struct{}

	// What follows belongs to Run's goroutine.
	recorder record.EventRecorder
	// said is the last event of each service.
	said     map[types.UID]string
	failures retry.Failures // of looking at the cluster
	// writes are those of each service.
	writes map[types.UID]*writes
}

// handled is an informer with this controller's handler.
type handled struct {
	informer     cache.SharedIndexInformer
	registration cache.ResourceEventHandlerRegistration
}

// New returns a controller that follows the informers. Run assigns addresses, and takes the
// handlers away when it ends.
func New(c Config) (*Controller, error) {
	core := c.Informers.Core().V1()
	pods := core.Pods().Informer()
	if err := pods.AddIndexers(cache.Indexers{hostPortIndex: indexHostPorts}); err != nil {
		return nil, fmt.Errorf("index pods with host ports: %w", err)
	}
	l := &Controller{
		config:   c,
		services: core.Services().Lister(),
		nodes:    core.Nodes().Lister(),
		pods:     pods.GetIndexer(),
		slices:   c.Informers.Discovery().V1().EndpointSlices().Lister(),
		poked:    make(chan struct{}, 1),
		said:     make(map[types.UID]string),
		writes:   make(map[types.UID]*writes),
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		matters  func(old, obj any) bool
	}{
		{core.Services().Informer(), serviceMatters},
		{core.Nodes().Informer(), nodeMatters},
		{pods, podMatters},
		{c.Informers.Discovery().V1().EndpointSlices().Informer(), l.sliceMatters},
	} {
		registration, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { l.poke(w.matters(nil, obj)) },
			UpdateFunc: func(old, obj any) {
				l.poke(w.matters(old, obj))
			},
			DeleteFunc: func(obj any) {
				if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = gone.Obj
				}
				l.poke(w.matters(nil, obj))
			},
		})
		if err != nil {
			return nil, fmt.Errorf("watch what load balancers depend on: %w", err)
		}
		l.handled = append(l.handled, handled{w.informer, registration})
	}
	return l, nil
}

// indexHostPorts finds pods with host ports without looking at all of them.
func indexHostPorts(obj any) ([]string, error) {
	if p, ok := obj.(*corev1.Pod); ok && hasHostPort(p) {
		return []string{""}, nil
	}
	return nil, nil
}

func hasHostPort(p *corev1.Pod) bool {
	ports := map[socket]string{}
	addHostPorts(ports, p)
	return len(ports) > 0
}

func serviceMatters(old, obj any) bool {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return false
	}
	before, _ := old.(*corev1.Service)
	// A node port of any service is a port that a load balancer cannot have.
	return before == nil || s.Generation != before.Generation || !equality.Semantic.DeepEqual(before.Spec, s.Spec) ||
		before.Labels[poolLabel] != s.Labels[poolLabel] ||
		!equality.Semantic.DeepEqual(before.Status.LoadBalancer, s.Status.LoadBalancer)
}

func nodeMatters(old, obj any) bool {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return false
	}
	before, _ := old.(*corev1.Node)
	return before == nil || serves(n) != serves(before) ||
		before.Annotations[hostports.Annotation] != n.Annotations[hostports.Annotation] ||
		before.Labels[enableLabel] != n.Labels[enableLabel] || before.Labels[poolLabel] != n.Labels[poolLabel] ||
		!slices.Equal(before.Status.Addresses, n.Status.Addresses)
}

func podMatters(old, obj any) bool {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return false
	}
	before, _ := old.(*corev1.Pod)
	if before == nil {
		return hasHostPort(p)
	}
	return hasHostPort(p) != hasHostPort(before) || hasHostPort(p) && p.Spec.NodeName != before.Spec.NodeName
}

// sliceMatters reports whether a slice is of a load balancer that wants its nodes only.
func (l *Controller) sliceMatters(_, obj any) bool {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return false
	}
	s, err := l.services.Services(slice.Namespace).Get(slice.Labels[discoveryv1.LabelServiceName])
	return err == nil && ours(s) && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func (l *Controller) poke(matters bool) {
	if !matters {
		return
	}
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

// Run assigns addresses until ctx ends.
func (l *Controller) Run(ctx context.Context) error {
	defer func() {
		for _, h := range l.handled {
			// It fails only for an informer that never had the handler.
			_ = h.informer.RemoveEventHandler(h.registration)
		}
	}()
	for _, h := range l.handled {
		select {
		case <-ctx.Done():
			return nil
		case <-h.registration.HasSyncedChecker().Done():
		}
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: l.config.Client.CoreV1().Events("")})
	l.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "load-balancer"})
	clear(l.writes) // another leader may have written since
	l.poke(true)
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.poked:
		case <-again.C:
		}
		if retry.Sleep(ctx, settle) != nil {
			return nil
		}
		next, err := l.sync(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if l.failures.News(err) {
				l.config.Logger.Warn("load balancers get no addresses; trying again", zap.Error(err))
			}
			next = time.Now().Add(lastRetry)
		default:
			l.failures.Recovered()
		}
		if again.Stop(); !next.IsZero() {
			again.Reset(time.Until(next))
		}
	}
}

// sync writes what assign decides. It returns when a service that has to wait can be written again;
// zero if none has to.
func (l *Controller) sync(ctx context.Context) (next time.Time, _ error) {
	current, err := l.state()
	if err != nil {
		return next, err
	}
	write := func(s *corev1.Service, ingress []corev1.LoadBalancerIngress) bool {
		until := l.write(ctx, s, ingress)
		if !until.IsZero() && (next.IsZero() || until.Before(next)) {
			next = until
		}
		return until.IsZero()
	}
	known := map[types.UID]bool{}
	if slices.ContainsFunc(current.services, ours) {
		for _, a := range assign(current) {
			known[a.service.UID] = true
			if write(a.service, ingress(a)) {
				l.say(a)
			}
		}
	}
	for _, s := range current.services {
		if stale(s) {
			known[s.UID] = true
			write(s, nil)
		}
	}
	maps.DeleteFunc(l.said, func(uid types.UID, _ string) bool { return !known[uid] })
	maps.DeleteFunc(l.writes, func(uid types.UID, _ *writes) bool { return !known[uid] })
	return next, nil
}

// stale reports whether a service has addresses that mote gave it while it was a load balancer.
func stale(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) > 0
}

func (l *Controller) state() (state, error) {
	services, err := l.services.List(labels.Everything())
	if err != nil {
		return state{}, fmt.Errorf("list services: %w", err)
	}
	nodes, err := l.nodes.List(labels.Everything())
	if err != nil {
		return state{}, fmt.Errorf("list nodes: %w", err)
	}
	found, err := l.pods.ByIndex(hostPortIndex, "")
	if err != nil {
		return state{}, fmt.Errorf("list pods with host ports: %w", err)
	}
	s := state{services: services, nodes: nodes, endpoints: l.endpoints}
	for _, obj := range found {
		if p, ok := obj.(*corev1.Pod); ok {
			s.pods = append(s.pods, p)
		}
	}
	return s, nil
}

// endpoints are the nodes with ready endpoints of a service.
func (l *Controller) endpoints(s *corev1.Service) map[string]bool {
	nodes := map[string]bool{}
	found, err := l.slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(
		labels.Set{discoveryv1.LabelServiceName: s.Name}))
	if err != nil {
		return nodes
	}
	for _, slice := range found {
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				nodes[*e.NodeName] = true
			}
		}
	}
	return nodes
}

// ingress is an assignment as the service's status has it.
func ingress(a assignment) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	mode := corev1.LoadBalancerIPModeVIP
	for _, address := range a.addresses {
		i := corev1.LoadBalancerIngress{IP: address.String(), IPMode: &mode}
		for _, p := range a.service.Spec.Ports {
			i.Ports = append(i.Ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
		}
		out = append(out, i)
	}
	return out
}

// writes are what happened to the addresses of one service. It waits on its own: others get
// theirs at once.
type writes struct {
	pause retry.Backoff
	// until is when it may be written again.
	until time.Time
	// base is the version that was replaced: the informer is behind while it has that.
	base string
	// wrote is what stood there last, if written is set.
	wrote   []corev1.LoadBalancerIngress
	written bool
	// told is set once somebody was told that another one writes, too.
	told     bool
	failures retry.Failures
}

// wait sets when the service may be written again.
func (w *writes) wait() time.Time {
	w.until = time.Now().Add(w.pause.Next())
	return w.until
}

// write updates a service's status if it differs. It returns when to try again; zero if there is no
// need to.
func (l *Controller) write(ctx context.Context, s *corev1.Service, ingress []corev1.LoadBalancerIngress) time.Time {
	w := l.writes[s.UID]
	if w == nil {
		w = &writes{pause: retry.Backoff{First: firstRetry, Last: lastRetry}}
		l.writes[s.UID] = w
	}
	same := equality.Semantic.DeepEqual(s.Status.LoadBalancer.Ingress, ingress)
	switch {
	case w.base != "" && w.base == s.ResourceVersion:
		return time.Now().Add(lastRetry) // an event is on its way
	case same && time.Since(w.until) > lastRetry:
		w.pause.Reset()
		fallthrough
	case same:
		w.failures.Recovered()
		w.wrote, w.written = ingress, true
		return time.Time{}
	case time.Now().Before(w.until):
		return w.until
	}
	// The informer has what was written since, so this is another's.
	contested := w.written && !equality.Semantic.DeepEqual(s.Status.LoadBalancer.Ingress, w.wrote)
	before, version := s.Status.LoadBalancer.Ingress, s.ResourceVersion
	s = s.DeepCopy()
	s.Status.LoadBalancer.Ingress = ingress
	result, err := l.config.Client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err), ctx.Err() != nil:
		return time.Time{}
	case err != nil:
		if !apierrors.IsConflict(err) && w.failures.News(err) {
			l.config.Logger.Warn("addresses of a load balancer are not written; trying again",
				zap.Stringer("service", key(s)), zap.Error(err))
		}
		return w.wait()
	}
	w.failures.Recovered()
	w.wrote, w.written = ingress, true
	if w.base = ""; result.ResourceVersion != version {
		w.base = version
	}
	if contested {
		w.wait()
		if !w.told {
			w.told = true
			l.recorder.Event(s, corev1.EventTypeWarning, "LoadBalancerContested", "something else writes other "+
				"addresses ("+texts(before)+"): give the service its loadBalancerClass, or start the servers with "+
				"--disable load-balancer")
		}
		return time.Time{}
	}
	l.recorder.Eventf(s, corev1.EventTypeNormal, "UpdatedLoadBalancer", "addresses: %s -> %s", texts(before),
		texts(ingress))
	return time.Time{}
}

func texts(ingress []corev1.LoadBalancerIngress) string {
	if len(ingress) == 0 {
		return "none"
	}
	var out []string
	for _, i := range ingress {
		if ip, err := netip.ParseAddr(i.IP); err == nil {
			out = append(out, ip.String())
		} else {
			out = append(out, i.Hostname)
		}
	}
	return strings.Join(out, ", ")
}

// say reports in an event why a service lacks addresses, once for each reason.
func (l *Controller) say(a assignment) {
	if a.refused == l.said[a.service.UID] {
		return
	}
	l.said[a.service.UID] = a.refused
	if a.refused == "" {
		return
	}
	l.recorder.Event(a.service, corev1.EventTypeWarning, "LoadBalancerRefused", a.refused)
}
