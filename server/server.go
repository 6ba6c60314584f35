package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/cluster/members"
	"github.com/mote-dev/mote/server/controllers"
	"github.com/mote-dev/mote/server/join"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/server/revocation"
	"github.com/mote-dev/mote/server/scheduler"
	"github.com/mote-dev/mote/server/tunnel"
)

// Server is the control plane in one process.
type Server struct {
	config   Config
	loopback *loopback.Server
	// shared is the one set of informers of this process. runAPI owns it; everyone else only uses it.
	shared *informer.Shared
	ready  chan struct{}
	// built is closed when a node may start in this process; pki is set before.
	built chan struct{}
	pki   *pki.Set
	// renewedAdmin has room for one: the administrator has a new certificate.
	renewedAdmin chan struct{}
	// listener and data are set by Open.
	listener net.Listener
	data     *datastore
	// token is what the user wants nodes to join with, serverToken what the join
	// command has: set before ready is closed.
	token, serverToken joinapi.Token
	// member is this server among those of its etcd; nil on the built-in store.
	member *members.Member
}

// New checks c, sets the process's feature gates, and returns a server that has not
// touched anything yet.
func New(c Config) (*Server, error) {
	c, err := c.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	var token joinapi.Token
	if c.Token != "" {
		if token, err = joinapi.ParseToken(c.Token); err != nil {
			return nil, err
		}
	}
	err = upstream.SetFeatureGates(upstream.ServerGates(c.DatastoreEndpoint != ""),
		upstream.Args{Setting: "kube-controller-manager-arg", Args: c.KubeControllerManagerArgs},
		upstream.Args{Setting: "kube-scheduler-arg", Args: c.KubeSchedulerArgs},
		upstream.Args{Setting: "kube-apiserver-arg", Args: c.KubeAPIServerArgs})
	if err != nil {
		return nil, err
	}
	door := loopback.NewServer()
	factory, err := apiserver.NewInformers(door)
	if err != nil {
		return nil, err
	}
	return &Server{config: c, loopback: door, shared: informer.NewShared(factory), token: token, ready: make(chan struct{}), built: make(chan struct{}), renewedAdmin: make(chan struct{}, 1)}, nil
}

// Ready is closed when the API answers and the objects every cluster has exist.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Node is what a node in the server's own process connects with.
type Node struct {
	// REST reaches the API server in memory with the node's own rights.
	REST *rest.Config
	// Informers are the ones this process shares.
	Informers informers.SharedInformerFactory
	// Serving is the kubelet's serving certificate, ClientCAFile what it trusts.
	Serving      pki.Pair
	ClientCAFile string
}

// Node returns the identity of a node in this process, once the API answers and
// the controllers are made; see controllers.Config.Built.
func (s *Server) Node(ctx context.Context, name string, ips []net.IP, dir string) (Node, error) {
	select {
	case <-s.built:
	case <-ctx.Done():
		return Node{}, ctx.Err()
	}
	if len(ips) == 0 {
		ips = hostaddr.All()
	}
	serving, err := s.pki.NodeServing(dir, name, append([]net.IP{net.IPv4(127, 0, 0, 1), hostaddr.Dummy}, ips...), time.Now())
	if err != nil {
		return Node{}, err
	}
	config := s.loopback.Config(&user.DefaultInfo{
		Name:   "system:node:" + name,
		Groups: []string{user.NodesGroup, user.AllAuthenticated},
	})
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return patient{next} })
	return Node{
		REST:         config,
		Informers:    s.shared,
		Serving:      serving,
		ClientCAFile: s.pki.CAFile,
	}, nil
}

// Open opens the store, loads the cluster's keys and takes the port, and refuses
// what is damaged: everything that can be wrong before a part starts. Run does
// it if it has not been done; Close undoes it if Run is never called.
func (s *Server) Open(ctx context.Context) error {
	data, err := openDatastore(ctx, s.config)
	if err != nil {
		return err
	}
	if s.listener, err = s.open(ctx, data); err != nil {
		s.leave(ctx)
		return errors.Join(err, data.close())
	}
	s.data = data
	return nil
}

// open does what Open does once there is a datastore, and returns the port.
func (s *Server) open(ctx context.Context, data *datastore) (net.Listener, error) {
	c := s.config
	keys := filepath.Join(c.DataDir, "server", "tls")
	if c.DatastoreEndpoint != "" {
		if err := s.share(ctx, data, keys); err != nil {
			return nil, err
		}
	}
	var err error
	if s.pki, err = pki.Open(keys, s.names(), time.Now()); err != nil {
		return nil, fmt.Errorf("open the cluster's keys: %w", err)
	}
	if err := s.checkTokenPin(); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(s.bindHost(), strconv.Itoa(c.HTTPSListenPort)))
	if err != nil {
		return nil, fmt.Errorf("open the API server's port: %w", err)
	}
	return listener, nil
}

// Close releases what Open took. It is not needed after Run.
func (s *Server) Close() error {
	if s.data == nil {
		return nil
	}
	_ = s.listener.Close()
	s.leave(context.Background())
	return s.data.close()
}

// Run serves until ctx ends and closes everything in reverse order. It returns
// nil when it was asked to stop, else the first cause.
func (s *Server) Run(ctx context.Context) error {
	if s.data == nil {
		if err := s.Open(ctx); err != nil {
			return err
		}
	}
	defer func() { _ = s.listener.Close() }()
	storeLayer := startLayer(ctx, s.data.run)
	err := s.runAPI(ctx, storeLayer)
	s.leave(ctx)
	// What a layer says while it is torn down is no cause; it counts only alone.
	if stopErr := storeLayer.stop(); err == nil {
		err = stopErr
	}
	if closeErr := s.data.close(); err == nil {
		err = closeErr
	}
	return err
}

// runAPI runs the API server on an open store, and on it all that is its client.
func (s *Server) runAPI(ctx context.Context, below *layer) error {
	c := s.config
	apiLayerContext, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var metrics upstream.Metrics
	defer metrics.Close()
	tunnels, err := tunnel.New(tunnel.Config{
		Nodes: s.shared.Core().V1().Nodes().Informer(), Local: c.NodeName, Metrics: &metrics, Logger: c.Logger.Named("tunnel"),
	})
	if err != nil {
		return err
	}
	tunnelLayer := startLayer(ctx, tunnels.Run)
	defer func() { _ = tunnelLayer.stop() }()
	revoked, err := s.newGuard()
	if err != nil {
		return err
	}
	joining, err := s.joining(revoked, tunnels)
	if err != nil {
		return err
	}
	api, err := apiserver.New(apiLayerContext, apiserver.Config{
		PKI:              s.pki,
		Etcd:             s.data.client,
		Transport:        s.data.transport,
		Servers:          s.servers(),
		Name:             c.NodeName,
		Loopback:         s.loopback,
		Informers:        s.shared,
		Listener:         s.listener,
		BindAddress:      net.ParseIP(s.bindHost()),
		AdvertiseAddress: s.advertise(),
		Addresses:        s.addresses,
		ServiceCIDRs:     c.Cluster.ServiceCIDRs,
		ClusterDomain:    c.Cluster.ClusterDomain,
		Network:          tunnels,
		// Joining is in front: it tells nodes in their own words what is revoked.
		Wrap:      func(next http.Handler) http.Handler { return joining.Wrap(revoked.Wrap(next)) },
		ExtraArgs: c.KubeAPIServerArgs,
	})
	if err != nil {
		return err
	}
	apiLayer := startLayer(ctx, api.Run)
	// Everyone in this process reads from the informers: controllers, scheduler, the node, and the API
	// server itself. They end after all clients, and before the API server their watches go to.
	informerLayer := startLayer(ctx, s.shared.Run)
	err = s.runClients(ctx, api, joining, revoked, informerLayer, apiLayer, below)
	if withdrawErr := api.Withdraw(); withdrawErr != nil {
		c.Logger.Warn("the other servers have to find out themselves that this one stops", zap.Error(withdrawErr))
	}
	if stopErr := informerLayer.stop(); err == nil {
		err = stopErr
	}
	// In-process watches end only when their clients do, so the door is shut first.
	s.loopback.Close()
	if stopErr := apiLayer.stop(); err == nil {
		err = stopErr
	}
	return err
}

// runClients runs controllers and scheduler, and lets nodes join, until ctx ends
// or a layer fails.
func (s *Server) runClients(ctx context.Context, api *apiserver.Server, joining *join.Service, revoked *revocation.Guard, below ...*layer) error {
	c := s.config
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range below {
		g.Go(func() error { return l.watch(ctx) })
	}
	g.Go(func() error { return stopped(ctx, revoked.Run(ctx)) })
	g.Go(func() error {
		if err := api.WaitReady(ctx); err != nil {
			return stopped(ctx, err)
		}
		if err := s.inTurn(ctx, s.ensureSystemObjects); err != nil {
			return stopped(ctx, err)
		}
		if err := s.pki.WriteKubeconfig(c.KubeconfigOutput, s.url()); err != nil {
			return err
		}
		joining.Ready()
		close(s.ready)
		g.Go(func() error { return s.keepAdmin(ctx, revoked) })
		g.Go(func() error { return stopped(ctx, joining.Run(ctx)) })
		g.Go(func() error { return s.keepCertificates(ctx) })
		g.Go(func() error {
			return stopped(ctx, controllers.Run(ctx, controllers.Config{
				PKI: s.pki, Loopback: s.loopback, Informers: s.shared,
				Cluster: c.Cluster, ExtraArgs: c.KubeControllerManagerArgs,
				Built: func() { close(s.built) }, Lead: s.lead("kube-controller-manager", user.KubeControllerManager),
			}))
		})
		g.Go(func() error {
			return stopped(ctx, scheduler.Run(ctx, scheduler.Config{
				Loopback: s.loopback, Informers: s.shared, ExtraArgs: c.KubeSchedulerArgs, Lead: s.lead("kube-scheduler", user.KubeScheduler),
			}))
		})
		return nil
	})
	return g.Wait()
}

// stopped drops an error that only says that ctx ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Server) bindHost() string {
	if s.config.BindAddress == nil {
		return "0.0.0.0"
	}
	return s.config.BindAddress.String()
}

// url is the API server's address for clients on this machine.
func (s *Server) url() string {
	host := "127.0.0.1"
	if b := s.config.BindAddress; b != nil && !b.IsUnspecified() {
		host = b.String()
	}
	return "https://" + net.JoinHostPort(host, strconv.Itoa(s.config.HTTPSListenPort))
}

// addresses are those this server is reached at now, the preferred one first.
func (s *Server) addresses() []net.IP {
	if len(s.config.NodeIPs) > 0 {
		return s.config.NodeIPs
	}
	if b := s.config.BindAddress; b != nil && !b.IsUnspecified() {
		return []net.IP{b}
	}
	return []net.IP{hostaddr.Preferred()}
}

// URL is the API server's address for other machines, by what is known now.
func (s *Server) URL() string {
	return "https://" + net.JoinHostPort(s.advertise().String(), strconv.Itoa(s.config.HTTPSListenPort))
}

// advertise is the address the API server starts with.
func (s *Server) advertise() net.IP { return s.addresses()[0] }

// names are all names and addresses the serving certificate is for.
func (s *Server) names() pki.Names {
	c := s.config
	n := pki.Names{
		DNSNames: []string{
			"localhost", c.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + c.Cluster.ClusterDomain,
		},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, hostaddr.Dummy},
	}
	for _, r := range c.Cluster.ServiceCIDRs {
		n.IPs = append(n.IPs, clusterconfig.NthAddress(r, 1).AsSlice())
	}
	n.IPs = append(n.IPs, hostaddr.All()...)
	n.IPs = append(n.IPs, c.NodeIPs...)
	if b := c.BindAddress; b != nil && !b.IsUnspecified() {
		n.IPs = append(n.IPs, b)
	}
	for _, san := range c.TLSSANs {
		if ip := net.ParseIP(san); ip != nil {
			n.IPs = append(n.IPs, ip)
		} else {
			n.DNSNames = append(n.DNSNames, san)
		}
	}
	return n
}
