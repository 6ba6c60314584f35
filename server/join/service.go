package join

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/joinapi"
)

// Tunnel takes over nodes' connections to joinapi.PathTunnel. The node has been authenticated by
// then.
type Tunnel interface {
	ServeNode(w http.ResponseWriter, r *http.Request, node string)
}

// Config is what joining needs. No field may be zero unless it says so.
type Config struct {
	// CA is the cluster's authority, which every node trusts and whose certificates nodes have.
	CA *x509.Certificate
	// NodeName is this server's own node; no other machine gets its name.
	NodeName string
	// Names and IPs are those of API servers' certificates; a node's must have none of them.
	Names []string
	IPs   func() []net.IP
	// Addresses are those this server is reached at now, Port its HTTPS port.
	Addresses func() []net.IP
	Port      int
	// Password lets nodes join in addition to bootstrap tokens; empty means there is none.
	Password string
	// Cluster is what nodes get, without servers and time. Its ranges contain no node's address.
	Cluster joinapi.Cluster
	// Client returns a client of the API server in this process that authenticates as u.
	Client func(u user.Info) (kubernetes.Interface, error)
	// Informers are the ones this process shares; their owner runs them.
	Informers *informer.Shared
	// Tunnel may be nil: there is none then.
	Tunnel Tunnel
	// Revoked reports whether a certificate is revoked, and NodeRevoked whether a node is. Both may
	// wait until that is known, and return an error if it is not. Nil means never.
	Revoked     func(context.Context, *x509.Certificate) (bool, error)
	NodeRevoked func(ctx context.Context, node string) (bool, error)
	// Admit is called with each certificate before it is handed out, to except it from an earlier
	// revocation of the node. Nil means that nothing is called.
	Admit func(context.Context, *x509.Certificate) error
	// Now is the clock; nil means the machine's.
	Now    func() time.Time
	Logger *zap.Logger
}

// Service answers nodes. It is made with New, put in front of the API server with Wrap, and runs
// with Run once that API server answers.
type Service struct {
	config Config
	// client has all rights; certificates are requested with the node's rights instead.
	client kubernetes.Interface
	roots  *x509.CertPool
	// reserved has the names of API servers, to be matched as TLS does.
	reserved *x509.Certificate
	password [sha256.Size]byte
	// joins and rejoins are separate, so that guessing tokens keeps no node from rejoining.
	joins, rejoins *limiter
	// bodyTimeout is the constant, except in tests.
	bodyTimeout time.Duration
	ready       atomic.Bool

	mu sync.Mutex // guards what follows
	// logged holds when a refusal was last logged; at most maxLogged.
	logged map[refused]time.Time
}

// self is the identity of mote's own server code to the API.
var self = &user.DefaultInfo{Name: "system:mote", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}

// New validates c and returns a service that refuses nodes until Ready is called.
func New(c Config) (*Service, error) {
	if c.CA == nil || c.Client == nil || c.Addresses == nil || c.IPs == nil {
		return nil, errors.New("make join service: CA, Client, Addresses and IPs are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Revoked == nil {
		c.Revoked = func(context.Context, *x509.Certificate) (bool, error) { return false, nil }
	}
	if c.NodeRevoked == nil {
		c.NodeRevoked = func(context.Context, string) (bool, error) { return false, nil }
	}
	if c.Admit == nil {
		c.Admit = func(context.Context, *x509.Certificate) error { return nil }
	}
	client, err := c.Client(self)
	if err != nil {
		return nil, fmt.Errorf("make client of join service: %w", err)
	}
	s := &Service{
		config:      c,
		client:      client,
		roots:       x509.NewCertPool(),
		reserved:    &x509.Certificate{DNSNames: c.Names},
		password:    sha256.Sum256([]byte(c.Password)),
		joins:       newLimiter(c.Now),
		rejoins:     newLimiter(c.Now),
		bodyTimeout: bodyTimeout,
		logged:      map[refused]time.Time{},
	}
	s.roots.AddCert(c.CA)
	return s, nil
}

// Ready lets nodes in: the API answers, and the objects that joining needs exist.
func (s *Service) Ready() { s.ready.Store(true) }

// isReserved reports whether a node of this name could impersonate an API server.
func (s *Service) isReserved(name string) bool { return s.reserved.VerifyHostname(name) == nil }
