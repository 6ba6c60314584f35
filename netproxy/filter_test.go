package netproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy"
)

// recorder is a proxier that writes down what it is told.
type recorder struct {
	proxy.Provider
	calls []string
	cidrs []string
}

func (r *recorder) OnServiceAdd(s *v1.Service)       { r.calls = append(r.calls, "add "+s.Name) }
func (r *recorder) OnServiceUpdate(_, s *v1.Service) { r.calls = append(r.calls, "update "+s.Name) }
func (r *recorder) OnServiceDelete(s *v1.Service)    { r.calls = append(r.calls, "delete "+s.Name) }
func (r *recorder) OnEndpointSliceAdd(s *discovery.EndpointSlice) {
	r.calls = append(r.calls, "add "+s.Name)
}
func (r *recorder) OnEndpointSliceUpdate(_, s *discovery.EndpointSlice) {
	r.calls = append(r.calls, "update "+s.Name)
}
func (r *recorder) OnEndpointSliceDelete(s *discovery.EndpointSlice) {
	r.calls = append(r.calls, "delete "+s.Name)
}
func (r *recorder) OnServiceCIDRsChanged(cidrs []string) { r.cidrs = cidrs }

// untrimmed is what a host does that listens on nothing.
func untrimmed(s *v1.Service) *v1.Service { return s }

func TestServiceFilter(t *testing.T) {
	make := func(ip string, labels map[string]string) *v1.Service {
		return &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Labels: labels},
			Spec: v1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}}}
	}
	plain, other := make("10.43.0.5", nil),
		make("10.43.0.5", map[string]string{"service.kubernetes.io/service-proxy-name": "mine"})
	headless, dns := make("None", nil), make("10.43.0.10", nil)
	second := make("10.43.0.6", nil)
	second.Spec.ClusterIPs = []string{"10.43.0.6", "fd00:43::a"}
	for _, c := range []struct {
		name     string
		old, new *v1.Service
		want     string
	}{
		{"added", nil, plain, "[add s]"},
		{"changed", plain, plain, "[update s]"},
		{"deleted", plain, nil, "[delete s]"},
		{"handed to another proxy", plain, other, "[delete s]"},
		{"taken back", other, plain, "[add s]"},
		{"another proxy's", nil, other, "[]"},
		{"headless", nil, headless, "[]"},
		{"cluster DNS", nil, dns, "[]"},
		{"cluster DNS by its second address", nil, second, "[]"},
		{"cluster DNS deleted", dns, nil, "[]"},
	} {
		r := &recorder{}
		local := []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd00:43::a")}
		f := newServiceFilter(r, local, untrimmed)
		switch {
		case c.old == nil:
			f.OnServiceAdd(c.new)
		case c.new == nil:
			f.OnServiceDelete(c.old)
		default:
			f.OnServiceUpdate(c.old, c.new)
		}
		if got := fmt.Sprint(r.calls); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// addresses is a proxier that follows the load balancer addresses of one service as upstream's
// change tracker does: a change between two equal services is none.
type addresses struct {
	proxy.Provider
	served string
}

func of(s *v1.Service) string { return fmt.Sprint(s.Status.LoadBalancer.Ingress) }

func (a *addresses) OnServiceAdd(s *v1.Service) { a.served = of(s) }
func (a *addresses) OnServiceUpdate(old, s *v1.Service) {
	if of(old) != of(s) {
		a.served = of(s)
	}
}
func (a *addresses) OnServiceDelete(*v1.Service) { a.served = "" }

// A port that the host begins to listen on is taken from the proxier, and given back afterwards.
func TestServiceFilter_Repeat_FollowsTrim(t *testing.T) {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s"},
		Spec:       v1.ServiceSpec{ClusterIP: "10.43.0.5", ClusterIPs: []string{"10.43.0.5"}},
		Status: v1.ServiceStatus{LoadBalancer: v1.LoadBalancerStatus{
			Ingress: []v1.LoadBalancerIngress{{IP: "192.0.2.1"}}}},
	}
	busy := false
	var proxier addresses
	f := newServiceFilter(&proxier, nil, func(s *v1.Service) *v1.Service {
		if busy {
			s = s.DeepCopy()
			s.Status.LoadBalancer.Ingress = nil
		}
		return s
	})
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	if err := store.Add(s); err != nil {
		t.Fatal(err)
	}
	all, none := of(s), of(&v1.Service{})
	f.OnServiceAdd(s)
	for i, row := range []struct {
		busy bool
		want string
	}{{false, all}, {true, none}, {true, none}, {false, all}} {
		busy = row.busy
		f.repeat(store)
		if proxier.served != row.want {
			t.Errorf("round %d, the host listens: %v: the proxier has %s, want %s", i, busy, proxier.served, row.want)
		}
	}
	busy = true
	f.repeat(store)
	// The API server's next version arrives while the port is taken.
	f.OnServiceUpdate(s, s.DeepCopy())
	busy = false
	f.repeat(store)
	if proxier.served != all {
		t.Errorf("after an update: the proxier has %s, want %s", proxier.served, all)
	}
	f.OnServiceDelete(s)
	if len(f.balanced) != 0 {
		t.Errorf("%d deleted services are remembered", len(f.balanced))
	}
}

func TestEndpointFilter(t *testing.T) {
	plain := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "s"}}
	headless := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "s",
		Labels: map[string]string{v1.IsHeadlessService: ""}}}
	r := &recorder{}
	f := endpointFilter{r}
	f.OnEndpointSliceAdd(headless)
	f.OnEndpointSliceUpdate(headless, headless)
	f.OnEndpointSliceDelete(headless)
	f.OnEndpointSliceAdd(plain)
	f.OnEndpointSliceUpdate(plain, plain)
	f.OnEndpointSliceUpdate(plain, headless)
	f.OnEndpointSliceUpdate(headless, plain)
	f.OnEndpointSliceDelete(plain)
	if got, want := strings.Join(r.calls, ","), "add s,update s,delete s,add s,delete s"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestServiceFilter_OnServiceCIDRsChanged(t *testing.T) {
	holes := []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd00:43::a")}
	r := &recorder{}
	f := newServiceFilter(r, holes, untrimmed)
	f.OnServiceCIDRsChanged([]string{"10.43.0.0/24", "fd00:43::/124", "10.99.0.0/16"})
	if want := "10.43.0.0/29,10.43.0.11/32,10.43.0.128/25,10.43.0.16/28,10.43.0.32/27,10.43.0.64/26,10.43.0.8/31,10.43.0.12/30"; !slices.Equal(sorted(want+",10.99.0.0/16,fd00:43::/125,fd00:43::8/127,fd00:43::b/128,fd00:43::c/126"), r.cidrs) {
		t.Errorf("got %v", r.cidrs)
	}
	for _, text := range r.cidrs {
		p := netip.MustParsePrefix(text)
		for _, hole := range holes {
			if p.Contains(hole) {
				t.Errorf("%s holds %s", p, hole)
			}
		}
	}
}

func sorted(list string) []string {
	out := strings.Split(list, ",")
	slices.Sort(out)
	return out
}
