package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/agent/offline"
	"github.com/mote-dev/mote/agent/tunnel"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/discovery"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/retry"
)

// What a kubelet may ask of its server a second, as upstream has it.
const (
	requestsPerSecond = 50
	requestBurst      = 100
)

// ConnectToServer connects a node to a server on another machine, joining its cluster if it has
// not. joined is called once the node is in; it may be nil.
func ConnectToServer(c Config, moteVersion string, joined func()) Connect {
	discover := discovery.Find
	if slices.Contains(c.Disable, "discovery") {
		discover = nil
	}
	return func(ctx context.Context) (Connection, error) {
		m, err := join.Join(ctx, join.Config{
			Dir:         datadir.At(c.DataDir).Agent().Identity(),
			Servers:     c.Servers,
			Token:       c.Token,
			NodeName:    c.NodeName,
			MoteVersion: moteVersion,
			Discover:    discover,
			Logger:      c.Logger.Named("join"),
		})
		if err != nil {
			return Connection{}, err
		}
		cluster, err := readCluster(m.Cluster())
		if err != nil {
			return Connection{}, err
		}
		if joined != nil {
			joined()
		}
		memory, err := offline.New(offline.Config{
			Dir:    datadir.At(c.DataDir).Agent().Offline(),
			Next:   m.Transport(),
			Link:   m.Balancer(),
			Logger: c.Logger.Named("offline"),
		})
		if err != nil {
			return Connection{}, err
		}
		var kept atomic.Pointer[keeping]
		return Connection{
			REST: &rest.Config{
				// The name is all that counts: the transport knows the addresses.
				Host:      "https://" + join.ServerName,
				Transport: memory,
				QPS:       requestsPerSecond,
				Burst:     requestBurst,
				UserAgent: "mote-agent/" + moteVersion,
				ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf",
					AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"},
			},
			ClientCAFile: m.CAFile(),
			Servers:      m.Balancer().Addresses,
			CloseAll:     m.Balancer().CloseAll,
			Cluster:      cluster,
			Remembers:    true,
			Health:       func() Health { return health(m, kept.Load()) },
			Keep: func(ctx context.Context, shared informers.SharedInformerFactory) error {
				way, err := tunnel.New(tunnel.Config{
					Servers:  m.Balancer(),
					TLS:      m.TLS,
					Renewed:  m.Renewed,
					Kubelet:  kubelet.Address(c.KubeletArgs),
					PodCIDRs: podRanges(shared.Core().V1().Nodes().Lister(), m.NodeName()),
					Logger:   c.Logger.Named("tunnel"),
				})
				if err != nil {
					return err
				}
				kept.Store(&keeping{shared.Core().V1().Nodes().Lister(), way})
				if err := followServers(shared.Discovery().V1().EndpointSlices().Informer(),
					m.RefreshSoon); err != nil {
					return err
				}
				g, ctx := errgroup.WithContext(ctx)
				// The offline cache reads over the connection once more at its end.
				outlive, end := context.WithCancel(context.WithoutCancel(ctx))
				g.Go(func() error { return m.Run(outlive) })
				g.Go(func() error {
					defer end()
					return memory.Run(ctx)
				})
				g.Go(func() error { return way.Run(ctx) })
				g.Go(func() error { return followBackend(ctx, m, cluster.NetworkBackend, c.Logger) })
				return g.Wait()
			},
		}, nil
	}
}

// keeping is what maintains a node's connection.
type keeping struct {
	nodes corelisters.NodeLister
	way   *tunnel.Tunnel
}

// health returns the state of a node that has joined; k is nil before the connection is kept.
func health(m *join.Membership, k *keeping) Health {
	h := Health{Node: m.NodeName(), Reason: "it is starting", ServerFault: "no connection yet"}
	server, err := m.Balancer().Used()
	switch {
	case err != nil:
		h.ServerFault = strings.ReplaceAll(err.Error(), "\n", "; ")
	case server != "":
		h.Server, h.ServerFault = "https://"+server, ""
	}
	if k != nil {
		h.Ready, h.Reason = readiness(k.nodes, h.Node)
		h.Tunnels = k.way.Open()
	}
	return h
}

// followServers calls changed when other servers are behind the service kubernetes than before.
func followServers(slices cache.SharedIndexInformer, changed func()) error {
	_, err := slices.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			s, ok := obj.(*discoveryv1.EndpointSlice)
			return ok && s.Namespace == metav1.NamespaceDefault &&
				s.Labels[discoveryv1.LabelServiceName] == "kubernetes"
		},
		Handler: cache.ResourceEventHandlerDetailedFuncs{
			AddFunc: func(_ any, first bool) {
				// What is there at the start was asked for already.
				if !first {
					changed()
				}
			},
			UpdateFunc: func(before, after any) {
				a, b := before.(*discoveryv1.EndpointSlice), after.(*discoveryv1.EndpointSlice)
				if !equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) ||
					!equality.Semantic.DeepEqual(a.Ports, b.Ports) {
					changed()
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("follow the servers of the cluster: %w", err)
	}
	return nil
}

// membership is what followBackend needs of a [join.Membership].
type membership interface {
	Cluster() joinapi.Cluster
	Learned() <-chan struct{}
}

var _ membership = (*join.Membership)(nil)

// followBackend returns ErrNetworkBackendChanged once the servers say another backend than used.
// A backend that this mote does not know changes nothing: a node that goes on as before is better
// than none.
func followBackend(ctx context.Context, m membership, used clusterconfig.Backend, log *zap.Logger) error {
	var failures retry.Failures
	for {
		// Before the look, so that nothing is missed in between.
		learned := m.Learned()
		now, err := networkBackend(m.Cluster())
		switch {
		case err == nil && now != used:
			return fmt.Errorf("%w from %s to %s", ErrNetworkBackendChanged, used, now)
		case err != nil && failures.News(err):
			log.Error("the cluster's network-backend is not followed", zap.String("used", string(used)), zap.Error(err))
		case err == nil:
			failures.Recovered()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-learned:
		}
	}
}

// networkBackend reads how the cluster's nodes reach each other's pods.
func networkBackend(c joinapi.Cluster) (clusterconfig.Backend, error) {
	b := cmp.Or(c.NetworkBackend, clusterconfig.DefaultNetworkBackend)
	if b.Validate() != nil {
		return "", fmt.Errorf(
			"network-backend %q of the cluster is none of this mote's (%s): give this node the version of the servers",
			b, clusterconfig.Choices())
	}
	return b, nil
}

// podRanges returns what the API says are the ranges of a node's pods.
func podRanges(nodes corelisters.NodeLister, name string) func() []netip.Prefix {
	return func() []netip.Prefix {
		n, err := nodes.Get(name)
		if err != nil {
			return nil
		}
		var out []netip.Prefix
		for _, text := range n.Spec.PodCIDRs {
			if r, err := netip.ParsePrefix(text); err == nil {
				out = append(out, r.Masked())
			}
		}
		return out
	}
}

// readCluster reads what a server says of the cluster.
func readCluster(c joinapi.Cluster) (clusterconfig.Config, error) {
	backend, err := networkBackend(c)
	if err != nil {
		return clusterconfig.Config{}, err
	}
	c.NetworkBackend = backend
	return c.Config, nil
}
