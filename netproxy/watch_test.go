package netproxy

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap/zaptest"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/netnstest"
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

// TestProxy_Watch_RunningInformers registers with informers that have run for long, as those of a
// server in the same process: they report everything they know the moment a handler is there.
func TestProxy_Watch_RunningInformers(t *testing.T) {
	const count = 200
	objects := []runtime.Object{
		&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{v1.LabelTopologyZone: "attic"}}},
		&networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "a"},
			Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}},
		&networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "b"},
			Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.44.0.0/16"}}},
	}
	for i := range count {
		name := fmt.Sprintf("s%d", i)
		objects = append(objects,
			&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
				Spec: v1.ServiceSpec{ClusterIP: "10.43.1.1"}},
			&discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e" + name},
				AddressType: discovery.AddressTypeIPv4})
	}
	client := fake.NewClientset(objects...)
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		shared := informer.NewShared(informers.NewSharedInformerFactory(client, 0))
		ran := make(chan error, 1)
		go func() { ran <- shared.Run(ctx) }()
		shared.Core().V1().Services().Informer()
		shared.Core().V1().Nodes().Informer()
		shared.Discovery().V1().EndpointSlices().Informer()
		shared.Networking().V1().ServiceCIDRs().Informer()
		shared.Ensure()
		shared.WaitForCacheSync(ctx.Done())

		p, err := New(watchConfig(shared))
		if err != nil {
			t.Fatal(err)
		}
		network, err := podnet.New(p.cfg.podnet(ModeNFTables))
		if err != nil {
			t.Fatal(err)
		}
		r := &lockedRecorder{}
		w, err := p.watch(r, network)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.gate.Open(); err != nil {
			t.Fatal(err)
		}
		if err := w.run(ctx); err != nil {
			t.Fatal(err)
		}
		<-w.synced
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
		if err := p.gate.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
}

// watchConfig is a config whose informers run elsewhere.
func watchConfig(shared informers.SharedInformerFactory) Config {
	return Config{
		Client:     fake.NewClientset(),
		Informers:  shared,
		NodeName:   "n1",
		CNIConfDir: "/c",
		StateDir:   "/s",
		Cluster:    clusterconfig.Config{}.WithDefaults(),
	}
}

func TestNew_RequestsInformers(t *testing.T) {
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	if _, err := New(watchConfig(factory)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	factory.Start(ctx.Done())
	synced := factory.WaitForCacheSync(ctx.Done())
	if len(synced) != 5 {
		t.Errorf(
			"the owner of the factory would start %d informers, want services, endpoint slices, nodes, ranges, policies: %v", len(synced), synced)
	}
	cancel()
	factory.Shutdown()
}

// A proxy that ends must neither stop informers that others use nor leave its handlers on them.
func TestProxy_Run_Ends_SharedInformersGoOnWithoutIt(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shared := informer.NewShared(
		informers.NewSharedInformerFactory(fake.NewClientset(clusterObjects("192.0.2.5", 8080)...), 0))
	ran := make(chan error, 1)
	go func() { ran <- shared.Run(ctx) }()
	dir := t.TempDir()
	c := watchConfig(shared)
	c.CNIConfDir, c.StateDir, c.Logger = filepath.Join(dir, "net.d"), filepath.Join(dir, "cni"), zaptest.NewLogger(t)
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.Run(runCtx) }()
	select {
	case <-p.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	services := shared.Core().V1().Services().Informer()
	if services.IsStopped() {
		t.Error("the informers ended with the proxy")
	}
	if _, err := p.gate.Core().V1().Services().Informer().AddEventHandler(
		cache.ResourceEventHandlerFuncs{}); err == nil {
		t.Error("the proxy's handlers were not removed")
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
