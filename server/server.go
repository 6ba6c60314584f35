package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/part"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/cluster/members"
	"github.com/mote-dev/mote/server/loopback"
	"github.com/mote-dev/mote/server/pki"
)

// Server is the control plane in one process.
type Server struct {
	config   Config
	loopback *loopback.Server
	// shared is the one set of informers of this process. Its part owns it; everyone else only uses
	// it.
	shared *informer.Shared
	ready  chan struct{}
	parts  *part.Set[*control]
	// built is closed when a node may start in this process; pki is set before.
	built chan struct{}
	pki   *pki.Set
	// renewedAdmin, with room for one, is sent to when the administrator has a new certificate.
	renewedAdmin chan struct{}
	// listener and data are set by Open.
	listener net.Listener
	data     *datastore
	// token is the one the user configured, serverToken the one in the join command, set before
	// ready is closed.
	token, serverToken joinapi.Token
	// member is this server among those of its etcd; nil on the built-in store.
	member *members.Member
}

// New checks c, sets the process's feature gates, and returns a server that has not touched
// anything yet.
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
	if err := c.setFeatureGates(); err != nil {
		return nil, err
	}
	door := loopback.NewServer()
	factory, err := apiserver.NewInformers(door)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config:       c,
		loopback:     door,
		shared:       informer.NewShared(factory),
		token:        token,
		ready:        make(chan struct{}),
		built:        make(chan struct{}),
		renewedAdmin: make(chan struct{}, 1),
	}
	if s.parts, err = s.newParts(); err != nil {
		return nil, err
	}
	return s, nil
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

// Node returns the identity of a node in this process, once the API answers and the controllers are
// made; see controllers.Config.Built.
func (s *Server) Node(ctx context.Context, name string, ips []net.IP, dir string) (Node, error) {
	select {
	case <-s.built:
	case <-ctx.Done():
		return Node{}, ctx.Err()
	}
	if len(ips) == 0 {
		ips = hostaddr.All()
	}
	serving, err := s.pki.NodeServing(dir, name, append([]net.IP{net.IPv4(127, 0, 0, 1), hostaddr.Dummy}, ips...),
		time.Now())
	if err != nil {
		return Node{}, err
	}
	config := s.loopback.Config(&user.DefaultInfo{
		Name:   "system:node:" + name,
		Groups: []string{user.NodesGroup, user.AllAuthenticated},
	})
	return Node{
		REST:         config,
		Informers:    s.shared,
		Serving:      serving,
		ClientCAFile: s.pki.CAFile,
	}, nil
}

// Open opens the store, loads the cluster's keys and takes the port, and refuses what is damaged:
// everything that can be wrong before a part starts. Run does it if it has not been done; Close
// undoes it if Run is never called.
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
	keys := datadir.At(c.DataDir).TLS()
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

// Run serves until ctx ends and closes everything in reverse order. It returns nil when it was
// asked to stop, else the first cause.
func (s *Server) Run(ctx context.Context) error {
	if s.data == nil {
		if err := s.Open(ctx); err != nil {
			return err
		}
	}
	defer func() { _ = s.listener.Close() }()
	err := s.parts.Run(ctx)
	s.leave(ctx)
	// An error of closing counts only if nothing went wrong before.
	if closeErr := s.data.close(); err == nil {
		err = closeErr
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
