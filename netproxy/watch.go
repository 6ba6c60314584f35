package netproxy

import (
	"context"
	"fmt"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/mote-dev/mote/netproxy/podnet"
	"github.com/mote-dev/mote/netproxy/servicelb"
)

// handlers returns typed event handlers for an informer.
func handlers[T any](add func(T), update func(old, obj T), remove func(T)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if o, ok := obj.(T); ok {
				add(o)
			}
		},
		UpdateFunc: func(before, obj any) {
			old, okOld := before.(T)
			o, ok := obj.(T)
			if okOld && ok {
				update(old, o)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if o, ok := obj.(T); ok {
				remove(o)
			}
		},
	}
}

// watch feeds the proxier and the pod network from the informers.
type watch struct {
	// ports follows what the host listens on.
	ports    *servicelb.Reporter
	handled  []cache.ResourceEventHandlerRegistration
	complete func()
	// synced is closed once the proxier has every object that existed at the start.
	synced chan struct{}
}

// watch registers the proxier and the pod network with the informers.
//
// Upstream's pkg/proxy/config is not used: it registers with the informer first and takes its own
// handlers afterwards, which loses what a shared, running informer reports in between.
func (p *Proxy) watch(proxier proxy.Provider, network *podnet.Network) (*watch, error) {
	all := p.gate.Core().V1().Services().Informer()
	var services *serviceFilter
	ports := servicelb.New(servicelb.Config{
		Client:   p.cfg.Client,
		NodeName: p.cfg.NodeName,
		Wanted:   func() bool { return slices.ContainsFunc(all.GetStore().List(), isLoadBalancer) },
		Changed:  func() { services.repeat(all.GetStore()) },
		Logger:   p.log.Named("servicelb"),
	})
	services = newServiceFilter(proxier, p.cfg.LocalServiceIPs, ports.Trim)
	wanted := func(obj any) {
		if isLoadBalancer(obj) {
			ports.Poke()
		}
	}
	endpoints := endpointFilter{proxier}
	ranges := &serviceRanges{changed: services.OnServiceCIDRsChanged, known: make(map[string][]string)}
	nodes, endpointSlices := p.gate.Core().V1().Nodes().Informer(), p.gate.Discovery().V1().EndpointSlices().Informer()
	serversChanged := func() { p.serversChanged(endpointSlices.GetStore(), network) }
	changed := func() {
		// Before the first list is complete, missing nodes would count as deleted.
		if nodes.HasSynced() {
			// No node is believed to have a server's address.
			serversChanged()
			p.nodesChanged(nodes.GetStore(), proxier, network)
		}
	}
	w := &watch{ports: ports, synced: make(chan struct{}), complete: func() {
		changed()
		// The second of these calls makes the proxier write its rules.
		services.OnServiceSynced()
		endpoints.OnEndpointSlicesSynced()
	}}
	for _, r := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{all, handlers(services.OnServiceAdd, services.OnServiceUpdate, services.OnServiceDelete)},
		{all, cache.ResourceEventHandlerFuncs{AddFunc: wanted, UpdateFunc: func(_, obj any) { wanted(obj) }}},
		{
			endpointSlices,
			handlers(endpoints.OnEndpointSliceAdd, endpoints.OnEndpointSliceUpdate, endpoints.OnEndpointSliceDelete),
		},
		{
			p.gate.Networking().V1().ServiceCIDRs().Informer(),
			handlers(ranges.set, func(_, c *networking.ServiceCIDR) { ranges.set(c) }, ranges.remove),
		},
		{endpointSlices, cache.FilteringResourceEventHandler{
			FilterFunc: func(obj any) bool {
				s, ok := obj.(*discovery.EndpointSlice)
				return ok && ofServers(s)
			},
			Handler: handlers(func(*discovery.EndpointSlice) { serversChanged() },
				func(_, _ *discovery.EndpointSlice) { serversChanged() },
				func(*discovery.EndpointSlice) { serversChanged() }),
		}},
		{nodes, handlers(
			func(n *v1.Node) {
				if n.Name == p.cfg.NodeName {
					ports.Renew()
				}
			},
			func(old, n *v1.Node) {
				if n.Name == p.cfg.NodeName && n.UID != old.UID {
					ports.Renew()
				}
			},
			func(*v1.Node) {})},
		{nodes, handlers(func(*v1.Node) { changed() }, func(_, _ *v1.Node) { changed() },
			func(*v1.Node) { changed() })},
	} {
		handled, err := r.informer.AddEventHandler(r.handler)
		if err != nil {
			return nil, fmt.Errorf("watch what the proxy depends on: %w", err)
		}
		w.handled = append(w.handled, handled)
	}
	return w, nil
}

// isLoadBalancer reports whether an object is a service that wants a load balancer.
func isLoadBalancer(obj any) bool {
	s, ok := obj.(*v1.Service)
	return ok && s.Spec.Type == v1.ServiceTypeLoadBalancer
}

// run waits until the handlers have had all initial objects, and then lets the proxier write its
// rules.
func (w *watch) run(ctx context.Context) error {
	for _, h := range w.handled {
		select {
		case <-ctx.Done():
			return nil
		case <-h.HasSyncedChecker().Done():
		}
	}
	w.complete()
	close(w.synced)
	return nil
}

// serviceRanges joins the ranges of all ServiceCIDR objects.
type serviceRanges struct {
	changed func(cidrs []string)

	mu    sync.Mutex          // guards known
	known map[string][]string // by object
}

func (r *serviceRanges) set(c *networking.ServiceCIDR) { r.replace(c.Name, c.Spec.CIDRs) }

func (r *serviceRanges) remove(c *networking.ServiceCIDR) { r.replace(c.Name, nil) }

func (r *serviceRanges) replace(name string, cidrs []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(cidrs) == 0 {
		delete(r.known, name)
	} else {
		r.known[name] = cidrs
	}
	var all []string
	for _, each := range r.known {
		all = append(all, each...)
	}
	r.changed(all)
}
