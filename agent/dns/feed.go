package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// feed copies what informers report into an index.
type feed struct {
	index   *index
	sources []source
	slices  cache.Indexer
	synced  []cache.InformerSynced

	mu sync.Mutex // serialises keepSlice: services and slices have separate event handlers
}

// source is one informer and what its events change.
type source struct {
	informer     cache.SharedIndexInformer
	set          func(obj any, exists bool)
	registration cache.ResourceEventHandlerRegistration // nil before follow
}

// newFeed requests the informers from the factory.
func newFeed(x *index, factory informers.SharedInformerFactory) *feed {
	f := &feed{index: x}
	endpointSlices := factory.Discovery().V1().EndpointSlices().Informer()
	f.slices = endpointSlices.GetIndexer()
	f.sources = []source{
		{informer: factory.Core().V1().Namespaces().Informer(), set: f.namespace},
		{informer: factory.Core().V1().Services().Informer(), set: f.service},
		{informer: endpointSlices, set: f.slice},
	}
	return f
}

// follow registers with the informers, which have to be started afterwards.
func (f *feed) follow() error {
	for i := range f.sources {
		r := &f.sources[i]
		registration, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { r.set(obj, true) },
			UpdateFunc: func(old, obj any) {
				// Resyncs repeat an object without a change.
				if resourceVersion(old) == resourceVersion(obj) {
					return
				}
				if before, ok := old.(*discovery.EndpointSlice); ok {
					// It may belong to another service now.
					f.slice(before, true)
				}
				r.set(obj, true)
			},
			DeleteFunc: func(obj any) {
				if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = gone.Obj
				}
				r.set(obj, false)
			},
		})
		if err != nil {
			return fmt.Errorf("watch names of the cluster: %w", err)
		}
		r.registration = registration
		f.synced = append(f.synced, registration.HasSynced)
	}
	return nil
}

// close takes the handlers back: the informers may outlive the server.
func (f *feed) close() {
	for _, r := range f.sources {
		if r.registration != nil {
			// It fails only for handlers of another informer.
			_ = r.informer.RemoveEventHandler(r.registration)
		}
	}
}

func resourceVersion(obj any) string {
	m, err := meta.Accessor(obj)
	if err != nil {
		return ""
	}
	return m.GetResourceVersion()
}

func (f *feed) namespace(obj any, exists bool) {
	if n, ok := obj.(*corev1.Namespace); ok {
		f.index.setNamespace(n.Name, exists)
	}
}

func (f *feed) service(obj any, exists bool) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	k := key{s.Namespace, s.Name}
	if !exists {
		f.index.setService(k, nil)
		return
	}
	f.index.setService(k, serviceRecord(s))
	// Only slices of headless services are indexed. This service may have become headless after its
	// slices arrived.
	for _, obj := range f.slices.List() {
		if each, ok := obj.(*discovery.EndpointSlice); ok && sliceOwner(each) == k {
			f.keepSlice(k, each)
		}
	}
}

func (f *feed) slice(obj any, _ bool) {
	s, ok := obj.(*discovery.EndpointSlice)
	if !ok {
		return
	}
	if k := sliceOwner(s); k.name != "" {
		f.keepSlice(k, s)
	}
}

// keepSlice indexes the informer's latest version of the slice if its service is headless, and
// drops it otherwise. A slice that arrives before its service is handled again with the service.
func (f *feed) keepSlice(k key, s *discovery.EndpointSlice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	obj, exists, err := f.slices.Get(s)
	latest, ok := obj.(*discovery.EndpointSlice)
	owner := f.index.service(k)
	if err == nil && exists && ok && sliceOwner(latest) == k && owner != nil && owner.headless() {
		f.index.setSlice(k, s.Name, sliceRecord(latest))
	} else if f.index.hasSlice(k, s.Name) {
		f.index.setSlice(k, s.Name, nil)
	}
}

func (x *index) hasSlice(k key, name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.slices[k][name] != nil
}

func sliceOwner(s *discovery.EndpointSlice) key {
	return key{s.Namespace, s.Labels[discovery.LabelServiceName]}
}

// serviceRecord reduces a Service to its names.
func serviceRecord(s *corev1.Service) *service {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		alias, err := domainName(s.Spec.ExternalName)
		if err != nil {
			// The API server validates names here, but also permits an address, which cannot be an
			// alias.
			return &service{}
		}
		return &service{Alias: alias}
	}
	out := &service{Unready: s.Spec.PublishNotReadyAddresses}
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	for _, text := range ips {
		if ip, err := netip.ParseAddr(text); err == nil {
			out.IPs = append(out.IPs, ip.Unmap())
		}
	}
	if len(out.IPs) > 0 {
		for _, p := range s.Spec.Ports {
			if p.Name != "" {
				out.Ports = append(out.Ports, port{p.Name, strings.ToLower(string(p.Protocol)), uint16(p.Port)})
			}
		}
	}
	return out
}

// sliceRecord reduces an EndpointSlice to its names.
func sliceRecord(s *discovery.EndpointSlice) *slice {
	out := &slice{}
	if s.AddressType == discovery.AddressTypeFQDN {
		return out
	}
	for _, p := range s.Ports {
		if p.Name != nil && *p.Name != "" && p.Port != nil {
			proto := corev1.ProtocolTCP
			if p.Protocol != nil {
				proto = *p.Protocol
			}
			out.Ports = append(out.Ports, port{*p.Name, strings.ToLower(string(proto)), uint16(*p.Port)})
		}
	}
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			host := dashed(ip)
			if e.Hostname != nil && *e.Hostname != "" {
				host = strings.ToLower(*e.Hostname)
			}
			out.Endpoints = append(out.Endpoints,
				endpoint{Host: host, IP: ip.Unmap(), Ready: e.Conditions.Ready == nil || *e.Conditions.Ready})
		}
	}
	return out
}

// dashed formats an address as one label. A label must not begin or end with a dash, so an IPv6
// address that would is written in full.
func dashed(ip netip.Addr) string {
	text := ip.Unmap().String()
	if ip.Is6() && (strings.HasPrefix(text, "::") || strings.HasSuffix(text, "::")) {
		text = ip.StringExpanded()
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(text)
}

// undashed parses what dashed formatted.
func undashed(label string) (netip.Addr, bool) {
	if strings.Count(label, "-") == 3 {
		if ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ".")); err == nil {
			return ip, true
		}
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", ":"))
	return ip, err == nil && ip.Zone() == ""
}
