package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"slices"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/version"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/join"
	"github.com/mote-dev/mote/server/revocation"
	"github.com/mote-dev/mote/server/tunnel"
)

// client returns a client that speaks in memory as u.
func (s *Server) client(u user.Info) (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(s.loopback.Config(u))
}

// newJoining makes what nodes join this server by.
func (s *Server) newJoining(revoked *revocation.Guard, tunnels *tunnel.Server) (*join.Service, error) {
	c := s.config
	names := s.names()
	return join.New(join.Config{
		CA:       s.pki.CA.Cert,
		NodeName: c.NodeName,
		// The server's own name is refused as taken, which says more.
		Names:     slices.DeleteFunc(names.DNSNames, func(n string) bool { return n == c.NodeName }),
		IPs:       func() []net.IP { return s.names().IPs },
		Addresses: s.addresses,
		Port:      c.HTTPSListenPort,
		Password:  s.password(),
		Cluster: joinapi.Cluster{
			Config: c.Cluster, MoteVersion: c.Version, KubernetesVersion: version.Get().GitVersion,
		},
		Client:      s.client,
		Informers:   s.shared,
		Logger:      c.Logger.Named("join"),
		Tunnel:      guardedTunnel{revoked, tunnels},
		NodeRevoked: revoked.NodeRevoked,
		Admit:       revoked.Admit,
		Revoked: func(ctx context.Context, cert *x509.Certificate) (bool, error) {
			_, is, err := revoked.Revoked(ctx, cert)
			return is, err
		},
	})
}

// password is what nodes may join with beside the tokens of the cluster: a given token that is to
// be none of them. With an etcd no given one is: it opens the keys that lie there, so it must not
// lie there itself.
func (s *Server) password() string {
	if _, _, ok := s.token.Bootstrap(); ok && s.config.DatastoreEndpoint == "" {
		return ""
	}
	return s.token.Secret
}

// guardedTunnel ends a node's tunnel when its certificate is revoked.
type guardedTunnel struct {
	revoked *revocation.Guard
	tunnels *tunnel.Server
}

// ServeNode implements join.Tunnel.
func (t guardedTunnel) ServeNode(w http.ResponseWriter, r *http.Request, node string) {
	t.revoked.Wrap(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		t.tunnels.ServeNode(w, r, node)
	})).ServeHTTP(w, r)
}

// checkTokenPin refuses a token that names another cluster: nodes that trust it would not trust
// this server.
func (s *Server) checkTokenPin() error {
	if s.token.Pin == "" || s.token.Pin == s.Pin() {
		return nil
	}
	return fmt.Errorf(
		"token is of another cluster: it names the CA %s…, and %s has %s…: give only what follows \"::\", or the "+
			"--data-dir of that cluster",
		s.token.Pin[:12], datadir.At(s.config.DataDir).TLS(), s.Pin()[:12])
}

// ensureJoining keeps what joining needs in the API: this server's own name, and a token to join
// with.
func (s *Server) ensureJoining(ctx context.Context, client kubernetes.Interface) error {
	if err := join.ReserveNode(ctx, client, s.config.NodeName, s.config.DatastoreEndpoint == ""); err != nil {
		return err
	}
	given := s.token
	if s.password() != "" {
		given = joinapi.Token{}
	}
	token, err := join.EnsureServerToken(ctx, client, datadir.At(s.config.DataDir).TokenFile(), s.Pin(), given)
	if err != nil {
		return fmt.Errorf("keep token to join with: %w", err)
	}
	s.serverToken = token
	return nil
}

// JoinCommand is what to type on another machine to join it. It holds a token, and is known once
// Ready is closed.
func (s *Server) JoinCommand() string { return JoinCommand(s.URL(), s.serverToken) }

// JoinCommand is what to type on a machine to join it to the server at url.
func JoinCommand(url string, token joinapi.Token) string {
	return fmt.Sprintf("mote agent --server %s --token %s", url, token)
}
