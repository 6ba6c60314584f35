package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/joinapi"
)

func slice(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: metav1.NamespaceDefault,
		Labels: map[string]string{discoveryv1.LabelServiceName: service},
	}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func TestFollowServers_OnlyChangesOfServers(t *testing.T) {
	client := fake.NewClientset(slice("kubernetes", "kubernetes", "192.0.2.1"), slice("web", "web", "10.42.0.2"))
	factory := informers.NewSharedInformerFactory(client, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	informer := factory.Discovery().V1().EndpointSlices().Informer()
	changed := make(chan struct{}, 8)
	if err := followServers(informer, func() { changed <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	// Handlers hear of an event in the order they were added, each by itself.
	heard := make(chan struct{}, 8)
	if _, err := informer.AddEventHandler(
		cache.ResourceEventHandlerFuncs{UpdateFunc: func(any, any) { heard <- struct{}{} }}); err != nil {
		t.Fatal(err)
	}
	factory.StartWithContext(ctx)
	factory.WaitForCacheSync(ctx.Done())
	for _, row := range []struct {
		name  string
		slice *discoveryv1.EndpointSlice
		want  bool
	}{
		{"another service", slice("web", "web", "10.42.0.3"), false},
		{"a label", func() *discoveryv1.EndpointSlice {
			s := slice("kubernetes", "kubernetes", "192.0.2.1")
			s.Annotations = map[string]string{"a": "b"}
			return s
		}(), false},
		{"a second server", slice("kubernetes", "kubernetes", "192.0.2.1", "192.0.2.2"), true},
		{"one gone", slice("kubernetes", "kubernetes", "192.0.2.2"), true},
	} {
		if _, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, row.slice,
			metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		<-heard
		if !row.want {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: nobody was told", row.name)
		}
	}
	if len(changed) > 0 {
		t.Error("told of what is no change of servers")
	}
}

func TestReadCluster_NetworkBackend(t *testing.T) {
	for said, want := range map[clusterconfig.Backend]clusterconfig.Backend{"": "vxlan", "vxlan": "vxlan",
		"host-gw": "host-gw", "none": "none"} {
		c, err := readCluster(joinapi.Cluster{Config: clusterconfig.Config{NetworkBackend: said}})
		if err != nil || c.NetworkBackend != want {
			t.Errorf("%q is read as %q, %v; want %s", said, c.NetworkBackend, err, want)
		}
	}
	if _, err := readCluster(joinapi.Cluster{Config: clusterconfig.Config{NetworkBackend: "pigeon"}}); err == nil ||
		!strings.Contains(err.Error(), `network-backend "pigeon"`) ||
		!strings.Contains(err.Error(), "vxlan, host-gw, none") {
		t.Errorf("an unknown one: %v", err)
	}
}

// heard is a membership whose server says one thing after the other, and then the node is stopped.
type heard struct {
	said []clusterconfig.Backend
	now  joinapi.Cluster
	stop func()
}

func (h *heard) Cluster() joinapi.Cluster { return h.now }

// Learned is asked for before each look, so the next word is heard here.
func (h *heard) Learned() <-chan struct{} {
	if len(h.said) == 0 {
		h.stop()
		return nil
	}
	h.now.NetworkBackend, h.said = h.said[0], h.said[1:]
	learned := make(chan struct{})
	close(learned)
	return learned
}

func TestFollowBackend(t *testing.T) {
	for _, row := range []struct {
		name string
		said []clusterconfig.Backend
		want string // in the error
		logs int
	}{
		{name: "the same", said: []clusterconfig.Backend{"host-gw", "host-gw"}},
		{name: "another", said: []clusterconfig.Backend{"host-gw", "none"}, want: "from host-gw to none"},
		{name: "another at once", said: []clusterconfig.Backend{"vxlan"}, want: "from host-gw to vxlan"},
		{name: "nothing, which is the default", said: []clusterconfig.Backend{"host-gw", ""},
			want: "from host-gw to vxlan"},
		{name: "unknown", said: []clusterconfig.Backend{"pigeon", "pigeon", "host-gw", "pigeon"}, logs: 2},
		{
			name: "unknown and then another",
			said: []clusterconfig.Backend{"pigeon", "none"},
			want: "from host-gw to none",
			logs: 1,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			core, logs := observer.New(zap.ErrorLevel)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			err := followBackend(ctx, &heard{said: row.said, stop: stop}, "host-gw", zap.New(core))
			if row.want == "" && err != nil || row.want != "" &&
				(!errors.Is(err, ErrNetworkBackendChanged) || !strings.HasSuffix(err.Error(), row.want)) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if logs.Len() != row.logs {
				t.Errorf("%d lines are logged, want %d: %v", logs.Len(), row.logs, logs.All())
			}
		})
	}
}
