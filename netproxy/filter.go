package netproxy

import (
	"net/netip"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy"
	proxyapis "k8s.io/kubernetes/pkg/proxy/apis"
)

// serviceFilter filters the shared service informer for the proxier. kube-proxy selects its
// services in its request to the API server; a shared informer has all of them, so the same
// selection happens here.
type serviceFilter struct {
	proxier proxy.Provider
	local   []netip.Addr
	// trim removes what the proxier must not serve at this host's addresses.
	trim func(*v1.Service) *v1.Service
	// mu orders deliveries, so that a repeated one never follows a newer one.
	mu sync.Mutex
	// balanced are the services with addresses of load balancers, as they were delivered.
	balanced map[types.NamespacedName]*v1.Service
}

func newServiceFilter(proxier proxy.Provider, local []netip.Addr, trim func(*v1.Service) *v1.Service) *serviceFilter {
	return &serviceFilter{
		proxier:  proxier,
		local:    local,
		trim:     trim,
		balanced: make(map[types.NamespacedName]*v1.Service),
	}
}

// concerns reports whether the proxier handles the service: it has a cluster IP, is not assigned to
// another proxy, and its address is not served by this node itself. The proxier would reject
// packets to those, as they have no endpoints.
func (f *serviceFilter) concerns(s *v1.Service) bool {
	if _, other := s.Labels[proxyapis.LabelServiceProxyName]; other || s.Spec.ClusterIP == v1.ClusterIPNone {
		return false
	}
	for _, text := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if ip, err := netip.ParseAddr(text); err == nil && slices.Contains(f.local, ip) {
			return false
		}
	}
	return true
}

func (f *serviceFilter) OnServiceAdd(s *v1.Service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.concerns(s) {
		f.proxier.OnServiceAdd(f.next(s))
	}
}

func (f *serviceFilter) OnServiceUpdate(old, s *v1.Service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch was, is := f.concerns(old), f.concerns(s); {
	case was && is:
		f.proxier.OnServiceUpdate(f.last(old), f.next(s))
	case was:
		f.proxier.OnServiceDelete(f.last(old))
	case is:
		f.proxier.OnServiceAdd(f.next(s))
	}
}

func (f *serviceFilter) OnServiceDelete(s *v1.Service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.concerns(s) {
		f.proxier.OnServiceDelete(f.last(s))
	}
}

// repeat delivers the load balancers of store again, after trim changed its mind. The proxier drops
// a change between two equal services, so each comes with what was delivered before.
func (f *serviceFilter) repeat(store cache.Store) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, obj := range store.List() {
		if s, ok := obj.(*v1.Service); ok && f.balanced[name(s)] != nil && f.concerns(s) {
			f.proxier.OnServiceUpdate(f.last(s), f.next(s))
		}
	}
}

// next returns what to deliver for s. The caller holds mu.
func (f *serviceFilter) next(s *v1.Service) *v1.Service {
	trimmed := f.trim(s)
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		f.balanced[name(s)] = trimmed
	}
	return trimmed
}

// last returns what was delivered for s, and forgets it. The caller holds mu.
func (f *serviceFilter) last(s *v1.Service) *v1.Service {
	before, ok := f.balanced[name(s)]
	if !ok {
		return s
	}
	delete(f.balanced, name(s))
	return before
}

func name(s *v1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func (f *serviceFilter) OnServiceSynced() { f.proxier.OnServiceSynced() }

// OnServiceCIDRsChanged passes on the ranges in which the proxier drops packets to addresses
// without a service, minus the addresses this node serves itself.
func (f *serviceFilter) OnServiceCIDRsChanged(cidrs []string) {
	var out []string
	for _, text := range cidrs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		for _, rest := range without(p.Masked(), f.local) {
			out = append(out, rest.String())
		}
	}
	slices.Sort(out)
	f.proxier.OnServiceCIDRsChanged(out)
}

// without returns ranges that cover p except for the addresses in holes.
func without(p netip.Prefix, holes []netip.Addr) []netip.Prefix {
	if !slices.ContainsFunc(holes, p.Contains) {
		return []netip.Prefix{p}
	}
	if p.IsSingleIP() {
		return nil
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	bytes := p.Addr().AsSlice()
	bytes[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(bytes)
	return append(without(low, holes), without(netip.PrefixFrom(upper, p.Bits()+1), holes)...)
}

// endpointFilter drops the slices of headless services, which the proxier would only store.
type endpointFilter struct{ proxier proxy.Provider }

func headless(s *discovery.EndpointSlice) bool {
	_, ok := s.Labels[v1.IsHeadlessService]
	return ok
}

func (f endpointFilter) OnEndpointSliceAdd(s *discovery.EndpointSlice) {
	if !headless(s) {
		f.proxier.OnEndpointSliceAdd(s)
	}
}

func (f endpointFilter) OnEndpointSliceUpdate(old, s *discovery.EndpointSlice) {
	switch was, is := !headless(old), !headless(s); {
	case was && is:
		f.proxier.OnEndpointSliceUpdate(old, s)
	case was:
		f.proxier.OnEndpointSliceDelete(old)
	case is:
		f.proxier.OnEndpointSliceAdd(s)
	}
}

func (f endpointFilter) OnEndpointSliceDelete(s *discovery.EndpointSlice) {
	if !headless(s) {
		f.proxier.OnEndpointSliceDelete(s)
	}
}

func (f endpointFilter) OnEndpointSlicesSynced() { f.proxier.OnEndpointSlicesSynced() }
