package netproxy

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/netproxy/podnet"
)

// lockedRecorder is a recorder for informers that run.
type lockedRecorder struct {
	recorder
	mu       sync.Mutex
	synced   []string
	topology map[string]string
}

func (r *lockedRecorder) locked(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *lockedRecorder) OnServiceAdd(s *v1.Service) { r.locked(func() { r.recorder.OnServiceAdd(s) }) }
func (r *lockedRecorder) OnServiceUpdate(old, s *v1.Service) {
	r.locked(func() { r.recorder.OnServiceUpdate(old, s) })
}
func (r *lockedRecorder) OnServiceDelete(s *v1.Service) {
	r.locked(func() { r.recorder.OnServiceDelete(s) })
}
func (r *lockedRecorder) OnServiceSynced() {
	r.locked(func() { r.synced = append(r.synced, "services") })
}
func (r *lockedRecorder) OnEndpointSliceAdd(s *discovery.EndpointSlice) {
	r.locked(func() { r.recorder.OnEndpointSliceAdd(s) })
}
func (r *lockedRecorder) OnEndpointSlicesSynced() {
	r.locked(func() { r.synced = append(r.synced, "slices") })
}
func (r *lockedRecorder) OnServiceCIDRsChanged(c []string) {
	r.locked(func() { r.recorder.OnServiceCIDRsChanged(c) })
}
func (r *lockedRecorder) OnTopologyChange(l map[string]string) { r.locked(func() { r.topology = l }) }

// TestProxy_Watch_RunningInformers registers with informers that have run for long, as those of a server in the same process:
// they report everything they know the moment a handler is there.
func TestProxy_Watch_RunningInformers(t *testing.T) {
	const count = 200
	objects := []runtime.Object{
		&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{v1.LabelTopologyZone: "attic"}}},
		&networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}},
		&networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.44.0.0/16"}}},
	}
	for i := range count {
		name := fmt.Sprintf("s%d", i)
		objects = append(objects,
			&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: v1.ServiceSpec{ClusterIP: "10.43.1.1"}},
			&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e" + name}, AddressType: discovery.AddressTypeIPv4})
	}
	client := fake.NewClientset(objects...)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		factory := informers.NewSharedInformerFactory(client, 0)
		factory.Core().V1().Services().Informer()
		factory.Core().V1().Nodes().Informer()
		factory.Discovery().V1().EndpointSlices().Informer()
		factory.Networking().V1().ServiceCIDRs().Informer()
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())

		p, err := New(Config{Client: client, Informers: factory, NodeName: "n1", CNIConfDir: "/c", StateDir: "/s", Cluster: cluster("10.42.0.0/16", "10.43.0.0/16")})
		if err != nil {
			t.Fatal(err)
		}
		network, err := podnet.New(p.cfg.podnet(ModeNFTables))
		if err != nil {
			t.Fatal(err)
		}
		r := &lockedRecorder{}
		g, gctx := errgroup.WithContext(ctx)
		synced, err := p.watch(gctx, g, r, network)
		if err != nil {
			t.Fatal(err)
		}
		<-synced
		r.locked(func() {
			if len(r.calls) != 2*count {
				t.Errorf("%d of %d objects reached the proxier", len(r.calls), 2*count)
			}
			slices.Sort(r.cidrs)
			if !slices.Equal(r.cidrs, []string{"10.43.0.0/16", "10.44.0.0/16"}) {
				t.Errorf("service ranges: %v", r.cidrs)
			}
			if !slices.Equal(r.synced, []string{"services", "slices"}) {
				t.Errorf("told to be synced: %v", r.synced)
			}
			if r.topology[v1.LabelTopologyZone] != "attic" {
				t.Errorf("topology: %v", r.topology)
			}
		})
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		factory.Shutdown()
	}
}
