package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/discovery"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/part"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/controllers"
	"github.com/mote-dev/mote/server/join"
	"github.com/mote-dev/mote/server/nodeclaims"
	"github.com/mote-dev/mote/server/revocation"
	"github.com/mote-dev/mote/server/scheduler"
	"github.com/mote-dev/mote/server/services/loadbalancer"
	"github.com/mote-dev/mote/server/tunnel"
)

// control is what the parts of a running server share: each field is set by the part that makes it,
// for those that need it.
type control struct {
	*Server
	tunnels *tunnel.Server
	revoked *revocation.Guard
	joining *join.Service
	api     *apiserver.Server
}

// parts are what a server is made of. A node in the same process stops before any of them.
var parts = []part.Part[*control]{
	{
		Name:    "store",
		Purpose: "keeps the cluster's objects: the built-in store, or a client of an etcd",
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.data.run, Durable: true}, nil
		},
	},
	{
		Name:    "tunnels",
		Purpose: "reaches kubelets and pods over the connections that nodes open",
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			run, err := c.newTunnels()
			return part.Running{Run: run}, err
		},
	},
	{
		Name:    "api-server",
		Purpose: "serves the Kubernetes API, and joining, on the HTTPS port",
		Needs:   []string{"store", "tunnels"},
		New: func(ctx context.Context, c *control, _ part.Lead) (part.Running, error) {
			run, err := c.newAPIServer(ctx)
			return part.Running{Run: run, Durable: true}, err
		},
	},
	{
		Name:    "informers",
		Purpose: "watch the API once for everything in this process",
		Needs:   []string{"api-server"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.shared.Run}, nil
		},
	},
	{
		Name:    "revocation",
		Purpose: "refuses certificates that were revoked",
		Needs:   []string{"api-server"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.revoked.Run, Ready: c.revoked.Loaded()}, nil
		},
	},
	{
		Name:    "system-objects",
		Purpose: "applies the objects every cluster of mote has, and writes the administrator's kubeconfig",
		Needs:   []string{"api-server", "informers"},
		New: func(ctx context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{}, c.prepareCluster(ctx)
		},
	},
	{
		Name:    "kubeconfig",
		Purpose: "replaces the administrator's certificate when it is revoked",
		Needs:   []string{"revocation", "system-objects"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: func(ctx context.Context) error { return c.keepAdmin(ctx, c.revoked) }}, nil
		},
	},
	{
		Name:    "certificates",
		Purpose: "renews the server's certificates",
		Needs:   []string{"system-objects"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.keepCertificates}, nil
		},
	},
	{
		Name:    "node-joining",
		Purpose: "approves the certificates of nodes and keeps their names",
		Needs:   []string{"system-objects"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.joining.Run}, nil
		},
	},
	{
		Name:    "node-role",
		Purpose: "labels the server's own node as a control plane's",
		Needs:   []string{"system-objects"},
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			return part.Running{Run: c.keepRole}, nil
		},
	},
	{
		Name:    "controllers",
		Purpose: "run upstream's controllers",
		Needs:   []string{"system-objects"},
		Leader:  "kube-controller-manager",
		New: func(_ context.Context, c *control, lead part.Lead) (part.Running, error) {
			config := controllers.Config{
				PKI:       c.pki,
				Loopback:  c.loopback,
				Informers: c.shared,
				Cluster:   c.config.Cluster,
				ExtraArgs: c.config.KubeControllerManagerArgs,
				Built:     func() { close(c.built) },
				Lead:      lead,
				Logger:    c.config.Logger.Named("controllers"),
			}
			return part.Running{Run: func(ctx context.Context) error { return controllers.Run(ctx, config) }}, nil
		},
	},
	{
		Name:    "scheduler",
		Purpose: "binds pods to nodes",
		Needs:   []string{"system-objects"},
		Leader:  "kube-scheduler",
		New: func(_ context.Context, c *control, lead part.Lead) (part.Running, error) {
			config := scheduler.Config{
				Loopback:  c.loopback,
				Informers: c.shared,
				ExtraArgs: c.config.KubeSchedulerArgs,
				Lead:      lead,
			}
			return part.Running{Run: func(ctx context.Context) error { return scheduler.Run(ctx, config) }}, nil
		},
	},
	{
		Name:     "load-balancer",
		Purpose:  "gives services of type LoadBalancer addresses of nodes",
		Needs:    []string{"system-objects"},
		Leader:   "mote-load-balancer",
		Optional: true,
		New: func(_ context.Context, c *control, lead part.Lead) (part.Running, error) {
			run, err := c.newLoadBalancer(lead)
			return part.Running{Run: run}, err
		},
	},
	{
		Name:     "discovery",
		Purpose:  "lets nodes find a server that moved, by multicast DNS",
		Needs:    []string{"system-objects"},
		Optional: true,
		New: func(_ context.Context, c *control, _ part.Lead) (part.Running, error) {
			if c.config.BindAddress.IsLoopback() {
				return part.Running{Idle: "the server listens on loopback only"}, nil
			}
			return part.Running{Run: c.announce}, nil
		},
	},
}

// newTunnels makes what reaches nodes, and returns what runs it.
func (c *control) newTunnels() (func(context.Context) error, error) {
	var metrics upstream.Metrics
	tunnels, err := tunnel.New(tunnel.Config{
		Nodes:        c.shared.Core().V1().Nodes().Informer(),
		ClusterCIDRs: c.config.Cluster.ClusterCIDRs,
		Local:        c.config.NodeName,
		Metrics:      &metrics,
		Logger:       c.config.Logger.Named("tunnel"),
	})
	if err != nil {
		metrics.Close()
		return nil, err
	}
	c.tunnels = tunnels
	return func(ctx context.Context) error {
		defer metrics.Close()
		return tunnels.Run(ctx)
	}, nil
}

// newAPIServer makes the API server and what stands in front of it, and returns what runs it.
func (c *control) newAPIServer(ctx context.Context) (_ func(context.Context) error, err error) {
	// New already starts goroutines of the API server: they live until it ends, not until ctx does.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			end()
		}
	}()
	if c.revoked, err = c.newGuard(); err != nil {
		return nil, err
	}
	if c.joining, err = c.newJoining(c.revoked, c.tunnels); err != nil {
		return nil, err
	}
	c.api, err = apiserver.New(life, apiserver.Config{
		PKI:              c.pki,
		Etcd:             c.data.client,
		Transport:        c.data.transport,
		Servers:          c.servers(),
		Name:             c.config.NodeName,
		Loopback:         c.loopback,
		Informers:        c.shared,
		Listener:         c.listener,
		BindAddress:      net.ParseIP(c.bindHost()),
		AdvertiseAddress: c.advertise(),
		Addresses:        c.addresses,
		ServiceCIDRs:     c.config.Cluster.ServiceCIDRs,
		NodeClaims:       c.nodeClaims(),
		Components:       c.components(),
		ClusterDomain:    c.config.Cluster.ClusterDomain,
		Network:          c.tunnels,
		// Joining comes first: it tells nodes in mote's own error codes what is revoked.
		Wrap:      func(next http.Handler) http.Handler { return c.joining.Wrap(c.revoked.Wrap(next)) },
		ExtraArgs: c.config.KubeAPIServerArgs,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		defer end()
		return c.serve(ctx)
	}, nil
}

// components tells the API of the parts that upstream runs as programs of their own.
func (c *control) components() map[string]func() error {
	check := func(name string) func() error {
		return func() error {
			for _, s := range c.Report() {
				switch {
				case s.Name != name:
				// A part that waits for its lead stands by for the server that has it.
				case s.State == part.Ready, s.State == part.Standby:
					return nil
				default:
					return fmt.Errorf("%s: %s", s.State, s.Detail)
				}
			}
			return fmt.Errorf("there is no part %s", name)
		}
	}
	return map[string]func() error{
		"controller-manager": check("controllers"),
		"scheduler":          check("scheduler"),
	}
}

// nodeClaims is what nodes may not claim to have.
func (c *control) nodeClaims() nodeclaims.Config {
	return nodeclaims.Config{
		Local:        c.config.NodeName,
		ClusterCIDRs: c.config.Cluster.ClusterCIDRs,
		ServiceCIDRs: c.config.Cluster.ServiceCIDRs,
		PodsInRanges: c.config.Cluster.NetworkBackend != clusterconfig.BackendNone,
		Servers:      func() []net.IP { return slices.Concat(c.addresses(), hostaddr.All()) },
	}
}

// serve runs the API server until ctx ends. By then all parts that use it have ended.
func (c *control) serve(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = c.api.Run(serving)
	}()
	select {
	case <-ended: // it failed; what waits for it in this process must not wait for ever
	case <-ctx.Done():
	}
	if err := c.api.Withdraw(); err != nil {
		c.config.Logger.Warn("the other servers must find out by themselves that this one stops", zap.Error(err))
	}
	// A watch in this process ends only when its client does, so no new one may come in from here.
	c.loopback.Close()
	stop()
	<-ended
	return err
}

// prepareCluster waits for the API and makes what every cluster has; then the server is ready.
func (c *control) prepareCluster(ctx context.Context) error {
	if err := c.api.WaitReady(ctx); err != nil {
		return err
	}
	if err := c.inTurn(ctx, c.ensureSystemObjects); err != nil {
		return err
	}
	if err := c.writeKubeconfig(); err != nil {
		return err
	}
	c.joining.Ready()
	close(c.ready)
	return nil
}

// announce answers nodes that look for their server on the local network.
func (c *control) announce(ctx context.Context) error {
	return discovery.Announce(ctx, discovery.Server{
		Name:      c.config.NodeName,
		Port:      uint16(c.config.HTTPSListenPort),
		Pin:       c.Pin(),
		Addresses: hostaddr.All,
	}, c.config.Logger.Named("discovery"))
}

// newLoadBalancer makes the controller of load balancers, and returns what runs it.
func (c *control) newLoadBalancer(lead part.Lead) (func(context.Context) error, error) {
	client, err := c.client(system)
	if err != nil {
		return nil, fmt.Errorf("make client of load balancers: %w", err)
	}
	balancer, err := loadbalancer.New(loadbalancer.Config{
		Client:    client,
		Informers: c.shared,
		Logger:    c.config.Logger.Named("load-balancer"),
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		// A request to the owner of the informers, who decides when they end.
		c.shared.Start(wait.NeverStop)
		if lead == nil {
			return balancer.Run(ctx)
		}
		return lead(ctx, balancer.Run)
	}, nil
}

// leaders are, for each lease, who writes it: the user that upstream's RBAC rules let write it, or
// mote itself.
var leaders = map[string]*user.DefaultInfo{
	"kube-controller-manager": {Name: user.KubeControllerManager, Groups: []string{user.AllAuthenticated}},
	"kube-scheduler":          {Name: user.KubeScheduler, Groups: []string{user.AllAuthenticated}},
	"mote-load-balancer":      system,
}

// newParts makes the set of parts that Run runs.
func (s *Server) newParts() (*part.Set[*control], error) {
	options := part.Options{
		Disable: s.config.Cluster.Disable,
		Failed:  s.config.Failed,
		Logger:  s.config.Logger,
	}
	if s.config.DatastoreEndpoint != "" {
		options.Lead = s.lead
	}
	set, err := part.NewSet(&control{Server: s}, parts, options)
	if err != nil {
		return nil, fmt.Errorf("table of the server's parts: %w", err)
	}
	return set, nil
}

// Report returns the state of each part.
func (s *Server) Report() []part.Status { return s.parts.Report() }

// Disableable are the parts of a server that Config.Cluster.Disable may name.
func Disableable() []string { return part.Optional(parts) }
