package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"

	"github.com/mote-dev/mote/hostaddr"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/controllers"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/server/scheduler"
)

// Server is the control plane in one process.
type Server struct {
	config   Config
	loopback *loopback.Server
	// shared is the one set of informers of this process.
	shared informers.SharedInformerFactory
	ready  chan struct{}
	// built is closed when a node may start in this process; pki is set before.
	built chan struct{}
	pki   *pki.Set
	// listener and data are set by Open.
	listener net.Listener
	data     *datastore
}

// New checks c and returns a server that has not touched anything yet.
func New(c Config) (*Server, error) {
	c, err := c.WithDefaults()
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	door := loopback.NewServer()
	shared, err := apiserver.NewInformers(door)
	if err != nil {
		return nil, err
	}
	return &Server{config: c, loopback: door, shared: shared, ready: make(chan struct{}), built: make(chan struct{})}, nil
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

// Open loads the cluster's keys, opens the store and takes the port, and
// refuses what is damaged: everything that can be wrong before a part starts.
// Run does it if it has not been done; Close undoes it if Run is never called.
func (s *Server) Open(ctx context.Context) error {
	c := s.config
	var err error
	if s.pki, err = pki.Open(filepath.Join(c.DataDir, "server", "tls"), s.names(), time.Now()); err != nil {
		return fmt.Errorf("open the cluster's keys: %w", err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(s.bindHost(), strconv.Itoa(c.HTTPSListenPort)))
	if err != nil {
		return fmt.Errorf("open the API server's port: %w", err)
	}
	data, err := openDatastore(ctx, c)
	if err != nil {
		_ = listener.Close()
		return err
	}
	s.listener, s.data = listener, data
	return nil
}

// Close releases what Open took. It is not needed after Run.
func (s *Server) Close() error {
	if s.data == nil {
		return nil
	}
	_ = s.listener.Close()
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
	api, err := apiserver.New(apiLayerContext, apiserver.Config{
		PKI:              s.pki,
		Etcd:             s.data.client,
		DialStore:        s.data.dial,
		Single:           c.DatastoreEndpoint == "",
		Loopback:         s.loopback,
		Informers:        s.shared,
		Listener:         s.listener,
		BindAddress:      net.ParseIP(s.bindHost()),
		AdvertiseAddress: s.advertise(),
		Addresses:        s.addresses,
		ServiceCIDRs:     c.ServiceCIDRs,
		ClusterDomain:    c.ClusterDomain,
		ExtraArgs:        c.KubeAPIServerArgs,
		Logger:           c.Logger.Named("apiserver"),
	})
	if err != nil {
		return err
	}
	apiLayer := startLayer(ctx, api.Run)
	err = s.runClients(ctx, api, apiLayer, below)
	// In-process watches end only when their clients do, so the door is shut first.
	s.loopback.Close()
	if stopErr := apiLayer.stop(); err == nil {
		err = stopErr
	}
	return err
}

// runClients runs controllers and scheduler until ctx ends or a layer fails.
func (s *Server) runClients(ctx context.Context, api *apiserver.Server, below ...*layer) error {
	c := s.config
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range below {
		g.Go(func() error { return l.watch(ctx) })
	}
	g.Go(func() error {
		if err := api.WaitReady(ctx); err != nil {
			return stopped(ctx, err)
		}
		if err := s.ensureSystemObjects(ctx); err != nil {
			return stopped(ctx, err)
		}
		if err := s.pki.WriteKubeconfig(c.KubeconfigOutput, s.url()); err != nil {
			return err
		}
		close(s.ready)
		g.Go(func() error {
			return stopped(ctx, controllers.Run(ctx, controllers.Config{
				PKI: s.pki, Loopback: s.loopback, Informers: s.shared,
				ClusterCIDRs: c.ClusterCIDRs, NodeMaskV4: NodeCIDRMaskSizeIPv4, NodeMaskV6: NodeCIDRMaskSizeIPv6,
				ServiceCIDRs: c.ServiceCIDRs, ExtraArgs: c.KubeControllerManagerArgs,
				Built:  func() { close(s.built) },
				Logger: c.Logger.Named("controllers"),
			}))
		})
		g.Go(func() error {
			return stopped(ctx, scheduler.Run(ctx, scheduler.Config{
				Loopback: s.loopback, Informers: s.shared, ExtraArgs: c.KubeSchedulerArgs, Logger: c.Logger.Named("scheduler"),
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
			"kubernetes.default.svc." + c.ClusterDomain,
		},
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, hostaddr.Dummy},
	}
	for _, r := range c.ServiceCIDRs {
		n.IPs = append(n.IPs, NthAddress(r, 1))
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
