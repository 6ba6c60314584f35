package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"

	etcdkubernetes "go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/mote-dev/mote/server/apiserver/warnings"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/nodeclaims"
	"github.com/mote-dev/mote/server/pki"
)

const (
	// compactionInterval is how much history the store keeps for watchers that fell behind, as
	// kube-apiserver does with etcd.
	compactionInterval = 5 * time.Minute
	// connectionGrace is how long a server that stops waits for connections to end. Those that a
	// broken network has left end with the process.
	connectionGrace = 3 * time.Second
	// storeCheckTimeout bounds the health check's read.
	storeCheckTimeout = 2 * time.Second
)

// Config is what an API server needs. No field may be zero unless it says so.
type Config struct {
	PKI *pki.Set
	// Etcd is the one client all resources are stored through.
	Etcd *etcdkubernetes.Client
	// Transport leads upstream's own etcd clients to the same store.
	Transport storagebackend.TransportConfig
	// Servers knows the servers that share the store. nil says that there is no other.
	Servers Servers
	// Name is this server's among those that share the store.
	Name string
	// Loopback is the door through which this process reaches the API server.
	Loopback *loopback.Server
	// Informers are shared with controllers and scheduler; see NewInformers.
	Informers informers.SharedInformerFactory
	// Listener is the one HTTPS port; Run closes it.
	Listener net.Listener
	// BindAddress is what Listener was opened for.
	BindAddress net.IP
	// AdvertiseAddress is the address of this server when it started.
	AdvertiseAddress net.IP
	// Addresses returns the addresses other machines and pods reach this server at now.
	Addresses func() []net.IP
	// ServiceCIDRs are the service ranges, the primary first.
	ServiceCIDRs []netip.Prefix
	// NodeClaims is what nodes' claims about themselves are compared with.
	NodeClaims nodeclaims.Config
	// Components tells, by upstream's names, of the programs that are parts of this process: nil
	// from a function means that its component is well. The store is added to them.
	Components map[string]func() error
	// ClusterDomain is the cluster's DNS domain, without dot at the end.
	ClusterDomain string
	// Network leads to kubelets, and to pods that serve webhooks and APIs or are reached by proxy.
	// nil means they are dialled as any address is.
	Network Network
	// Wrap puts handlers in front of the API, before authentication. May be nil.
	Wrap func(http.Handler) http.Handler
	// ExtraArgs are "flag=value" settings for kube-apiserver's own flags.
	ExtraArgs []string
}

// Network leads to the cluster's nodes and pods.
type Network interface {
	// DialContext connects to an address. A node's name stands for the node.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
	// HostOf returns the address by which a node can be told from all others, or "" if it has none.
	HostOf(node string) string
}

// Server is a composed API server.
type Server struct {
	config Config
	chain  *aggregatorapiserver.APIAggregator
	// history makes the watch caches forget.
	history *history
	// documents is what the chain shares of OpenAPI.
	documents *openapicommon.OpenAPIV3Config
	endpoints *endpointReconciler
}

// New composes the API server. Nothing runs and nothing is written yet.
func New(ctx context.Context, c Config) (*Server, error) {
	c.Etcd.KV = etcd3.NewETCDLatencyTracker(c.Etcd.KV)
	o, err := newOptions(c)
	if err != nil {
		return nil, err
	}
	completed, err := o.Complete(ctx)
	if err != nil {
		return nil, fmt.Errorf("complete API server options: %w", err)
	}
	if err := errors.Join(completed.Validate()...); err != nil {
		return nil, fmt.Errorf("check API server options: %w", err)
	}
	h := &history{}
	config, err := c.chainConfig(completed, h)
	if err != nil {
		return nil, err
	}
	ready, err := config.Complete()
	if err != nil {
		return nil, fmt.Errorf("complete API server configuration: %w", err)
	}
	chain, err := app.CreateServerChain(ready)
	if err != nil {
		return nil, fmt.Errorf("compose API servers: %w", err)
	}
	return &Server{
		config:    c,
		chain:     chain,
		history:   h,
		documents: config.KubeAPIs.ControlPlane.Generic.OpenAPIV3Config,
		endpoints: config.KubeAPIs.Extra.EndpointReconcilerConfig.Reconciler.(*endpointReconciler),
	}, nil
}

// chainConfig makes the configurations of the three servers of the chain.
func (c Config) chainConfig(o options.CompletedOptions, h *history) (*app.Config, error) {
	generic, storageFactory, err := c.genericConfig(o, h)
	if err != nil {
		return nil, err
	}
	kubeAPIs, resolver, initializers, err := app.CreateKubeAPIServerConfig(o, generic, c.Informers, storageFactory)
	if err != nil {
		return nil, fmt.Errorf("configure API server: %w", err)
	}
	client, err := kubernetes.NewForConfig(generic.LoopbackClientConfig)
	if err != nil {
		return nil, fmt.Errorf("make endpoint client: %w", err)
	}
	kubeAPIs.Extra.EndpointReconcilerConfig.Reconciler = newEndpointReconciler(client, c.Addresses, c.Servers)

	authResolver := webhook.NewDefaultAuthenticationInfoResolverWrapper(
		kubeAPIs.ControlPlane.ProxyTransport, kubeAPIs.ControlPlane.Generic.EgressSelector,
		kubeAPIs.ControlPlane.Generic.LoopbackClientConfig, kubeAPIs.ControlPlane.Generic.TracerProvider)
	extensions, err := controlplaneapiserver.CreateAPIExtensionsConfig(*kubeAPIs.ControlPlane.Generic, c.Informers,
		initializers, o.CompletedOptions, o.MasterCount, resolver, authResolver)
	if err != nil {
		return nil, fmt.Errorf("configure custom resources: %w", err)
	}
	extensions.GenericConfig.RESTOptionsGetter = &restOptions{next: extensions.GenericConfig.RESTOptionsGetter,
		client: c.Etcd, history: h}
	extensions.ExtraConfig.CRDRESTOptionsGetter = &restOptions{next: extensions.ExtraConfig.CRDRESTOptionsGetter,
		client: c.Etcd, history: h}

	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(*kubeAPIs.ControlPlane.Generic, o.CompletedOptions,
		c.Informers, resolver, kubeAPIs.ControlPlane.ProxyTransport, kubeAPIs.ControlPlane.Extra.PeerProxy,
		initializers)
	if err != nil {
		return nil, fmt.Errorf("configure aggregation: %w", err)
	}
	aggregator.GenericConfig.RESTOptionsGetter = &restOptions{next: aggregator.GenericConfig.RESTOptionsGetter,
		client: c.Etcd, history: h}
	c.serveComponentStatuses(&aggregator.GenericConfig.Config)
	if !c.buildsDocuments() {
		if err := c.serveDocuments(&aggregator.GenericConfig.Config); err != nil {
			return nil, err
		}
	}
	c.wrapChain(&aggregator.GenericConfig.Config)
	return &app.Config{
		Options:       o,
		Aggregator:    aggregator,
		KubeAPIs:      kubeAPIs,
		ApiExtensions: extensions,
	}, nil
}

// wrapChain puts handlers around the filters of g, which is the last server of the chain: the other
// two are reached through it, behind its filters. It comes last, because upstream replaces that
// server's filters when some feature gates are set.
func (c Config) wrapChain(g *genericapiserver.Config) {
	filters := g.BuildHandlerChainFunc
	g.BuildHandlerChainFunc = func(api http.Handler, g *genericapiserver.Config) http.Handler {
		h := filters(warnings.Wrap(api), g)
		if c.Wrap != nil {
			h = c.Wrap(h)
		}
		return h
	}
}

// Run serves until ctx ends and all requests that can end have ended.
func (s *Server) Run(ctx context.Context) error {
	prepared, err := s.chain.PrepareRun()
	if err != nil {
		return fmt.Errorf("prepare API server: %w", err)
	}
	if !s.config.buildsDocuments() {
		dropDefinitions(s.documents)
	}
	s.chain.GenericAPIServer.ShutdownTimeout = connectionGrace
	compactor := etcd3.StartCompactorPerEndpoint(s.config.Etcd.Client, compactionInterval)
	defer compactor.Stop()
	s.history.follow(compactor)
	var work sync.WaitGroup
	defer work.Wait()
	life, end := context.WithCancel(ctx)
	defer end()
	work.Go(func() { s.history.windows.Run(life) })
	s.config.Loopback.Serve(s.chain.GenericAPIServer.Handler)
	if err := prepared.Run(ctx); err != nil {
		return fmt.Errorf("serve API: %w", err)
	}
	return nil
}

// Withdraw takes this server's addresses from behind the service kubernetes, if other servers are
// left. It is called while Run still serves.
func (s *Server) Withdraw() error {
	if err := s.endpoints.withdraw(); err != nil {
		return fmt.Errorf("withdraw from service kubernetes: %w", err)
	}
	return nil
}

// WaitReady returns once /readyz says ok, or when ctx ends.
func (s *Server) WaitReady(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.config.Loopback.Config(self))
	if err != nil {
		return fmt.Errorf("make readiness client: %w", err)
	}
	var last error
	err = wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, last = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("wait for API server: %w", err), last)
	}
	return nil
}

// storeCheck is the "etcd" check of /healthz, /livez and /readyz.
func (c Config) storeCheck() healthz.HealthChecker {
	return healthz.NamedGroupedCheck("etcd", "etcd", func(r *http.Request) error {
		return c.checkStore(r.Context())
	})
}

func (c Config) checkStore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeCheckTimeout)
	defer cancel()
	if _, err := c.Etcd.Client.Get(ctx, "/registry/health"); err != nil {
		return fmt.Errorf("read from store: %w", err)
	}
	return nil
}
