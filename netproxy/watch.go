package netproxy

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/mote-dev/mote/netproxy/podnet"
)

// handlers makes typed event handlers of an informer.
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

// watch registers the proxier and the pod network with the informers and starts those. The channel is closed when the
// proxier has written what was there at the start.
//
// Upstream's pkg/proxy/config is not used: it registers with the informer first and takes its own handlers afterwards, which
// loses what a shared, running informer reports in between.
func (p *Proxy) watch(ctx context.Context, g *errgroup.Group, proxier proxy.Provider, network *podnet.Network) (<-chan struct{}, error) {
	services := newServiceFilter(proxier, p.cfg.LocalServiceIPs)
	endpoints := endpointFilter{proxier}
	ranges := &serviceRanges{told: services.OnServiceCIDRsChanged, known: make(map[string][]string)}
	nodes := p.factory.Core().V1().Nodes().Informer()
	changed := func() {
		// Until the first list is complete, nodes that are not in it yet would count as gone.
		if nodes.HasSynced() {
			p.nodesChanged(nodes.GetStore(), proxier, network)
		}
	}
	var synced [4]cache.ResourceEventHandlerRegistration
	for i, r := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{p.factory.Core().V1().Services().Informer(), handlers(services.OnServiceAdd, services.OnServiceUpdate, services.OnServiceDelete)},
		{p.factory.Discovery().V1().EndpointSlices().Informer(), handlers(endpoints.OnEndpointSliceAdd, endpoints.OnEndpointSliceUpdate, endpoints.OnEndpointSliceDelete)},
		{p.factory.Networking().V1().ServiceCIDRs().Informer(), handlers(ranges.set, func(_, c *networking.ServiceCIDR) { ranges.set(c) }, ranges.remove)},
		{nodes, handlers(func(*v1.Node) { changed() }, func(_, _ *v1.Node) { changed() }, func(*v1.Node) { changed() })},
	} {
		var err error
		if synced[i], err = r.informer.AddEventHandler(r.handler); err != nil {
			return nil, fmt.Errorf("watch what the proxy depends on: %w", err)
		}
	}
	p.factory.Start(ctx.Done())
	done := make(chan struct{})
	g.Go(func() error {
		if !cache.WaitForCacheSync(ctx.Done(), synced[0].HasSynced, synced[1].HasSynced, synced[2].HasSynced, synced[3].HasSynced) {
			return nil
		}
		changed()
		// The first call only notes that one half is there, the second writes the rules.
		services.OnServiceSynced()
		endpoints.OnEndpointSlicesSynced()
		close(done)
		return nil
	})
	return done, nil
}

// serviceRanges joins the ranges of all ServiceCIDR objects.
type serviceRanges struct {
	told func(cidrs []string)

	mu    sync.Mutex          // guards known
	known map[string][]string // by object
}

func (r *serviceRanges) set(c *networking.ServiceCIDR) { r.change(c.Name, c.Spec.CIDRs) }

func (r *serviceRanges) remove(c *networking.ServiceCIDR) { r.change(c.Name, nil) }

func (r *serviceRanges) change(name string, cidrs []string) {
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
	r.told(all)
}
