package join

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/authentication/user"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/server/revocation"
)

const (
	// answerTimeout bounds one answer, the wait for a certificate included. Nodes wait 20 seconds.
	answerTimeout = 18 * time.Second
	// revocationTimeout bounds the part of it that waits for the list of revoked certificates.
	revocationTimeout = 5 * time.Second
)

// Wrap serves the paths of joinapi in front of next, to requests that came over TLS: parts of this
// process never use them.
func (s *Service) Wrap(next http.Handler) http.Handler {
	paths := map[string]func(http.ResponseWriter, *http.Request) error{
		joinapi.PathCA:     s.serveCA,
		joinapi.PathJoin:   s.serveJoin,
		joinapi.PathRejoin: s.serveRejoin,
		joinapi.PathConfig: s.serveConfig,
		joinapi.PathTunnel: s.serveTunnel,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve, ours := paths[r.URL.Path]
		if !ours || r.TLS == nil {
			next.ServeHTTP(w, r)
			return
		}
		if err := serve(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Service) serveCA(w http.ResponseWriter, r *http.Request) error {
	if err := wantMethod(w, r, http.MethodGet); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	// A node that is gone has no use for an error.
	_, _ = w.Write(s.caPEM())
	return nil
}

func (s *Service) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.config.CA.Raw})
}

func (s *Service) serveJoin(w http.ResponseWriter, r *http.Request) error {
	if err := s.wantRequest(w, r); err != nil {
		return err
	}
	from := origin(r.RemoteAddr)
	leave, ok := s.joins.enter(from)
	if !ok {
		return refuse(joinapi.CodeTooManyRequests, "too many machines are joining at once: try again")
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	// Before the body is read, so that strangers cannot make the server read one.
	id, err := s.checkToken(ctx, r, from)
	if err != nil {
		return err
	}
	request, err := s.readRequest(w, r)
	if err != nil {
		return err
	}
	if err := s.checkRequest(request); err != nil {
		return err
	}
	if err := checkName(request.NodeName); err != nil {
		return err
	}
	if err := s.checkClock(request); err != nil {
		return err
	}
	if err := s.checkNodeRevoked(ctx, request.NodeName); err != nil {
		return err
	}
	if err := s.bind(ctx, from, request.NodeName, request.NodeSecret); err != nil {
		return err
	}
	joiner := &user.DefaultInfo{Name: bootstrapapi.BootstrapUserPrefix + id,
		Groups: []string{bootstrapapi.BootstrapDefaultGroup, user.AllAuthenticated}}
	return s.answer(ctx, w, r, request, joiner)
}

func (s *Service) serveRejoin(w http.ResponseWriter, r *http.Request) error {
	if err := s.wantRequest(w, r); err != nil {
		return err
	}
	from := origin(r.RemoteAddr)
	leave, ok := s.rejoins.enter(from)
	if !ok {
		return refuse(joinapi.CodeTooManyRequests, "too many nodes are joining again at once: try again")
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	request, err := s.readRequest(w, r)
	if err != nil {
		return err
	}
	// The node's clock is not checked: a board without a battery that was off for a year uses the
	// last time it got from a server.
	if err := s.checkRequest(request); err != nil {
		return err
	}
	if err := s.prove(ctx, from, request.NodeName, request.NodeSecret); err != nil {
		return err
	}
	if err := s.checkNodeRevoked(ctx, request.NodeName); err != nil {
		return err
	}
	node := &user.DefaultInfo{Name: nodePrefix + request.NodeName,
		Groups: []string{user.NodesGroup, user.AllAuthenticated}}
	return s.answer(ctx, w, r, request, node)
}

// checkNodeRevoked refuses a node that is revoked, and one of which that is not known yet.
func (s *Service) checkNodeRevoked(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, revocationTimeout)
	defer cancel()
	revoked, err := s.config.NodeRevoked(ctx, node)
	if err != nil {
		return revocationUnknown(err)
	}
	if !revoked {
		return nil
	}
	return refuse(joinapi.CodeNodeRevoked,
		"the certificates of node %s were revoked: choose another --node-name, or let the machine in with `mote node "+
			"forget %s` on the server", node, node)
}

// revocationUnknown is what a node gets when the server does not know what is revoked.
func revocationUnknown(err error) error {
	if errors.Is(err, revocation.ErrNotRead) {
		return refuse(joinapi.CodeNotReady, "the server is starting: %v: try again", revocation.ErrNotRead)
	}
	return fmt.Errorf("check what is revoked: %w", err)
}

// answer obtains the certificate as u and sends it.
func (s *Service) answer(ctx context.Context, w http.ResponseWriter, r *http.Request, request joinapi.Request,
	u user.Info) error {
	certificate, err := s.certificate(ctx, request, u)
	if err != nil {
		return err
	}
	cluster, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	s.config.Logger.Info("gave a node its certificate", zap.String("node", request.NodeName),
		zap.String("asked as", u.GetName()),
		zap.String("from", r.RemoteAddr), zap.String("version", request.MoteVersion))
	write(w, http.StatusOK, joinapi.Response{Certificate: certificate, Cluster: cluster})
	return nil
}

func (s *Service) serveConfig(w http.ResponseWriter, r *http.Request) error {
	if err := wantMethod(w, r, http.MethodGet); err != nil {
		return err
	}
	if err := s.wantReady(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	if _, err := s.authenticate(ctx, r); err != nil {
		return err
	}
	cluster, err := s.cluster(ctx)
	if err != nil {
		return err
	}
	write(w, http.StatusOK, cluster)
	return nil
}

func (s *Service) serveTunnel(w http.ResponseWriter, r *http.Request) error {
	if err := s.wantReady(); err != nil {
		return err
	}
	node, err := s.authenticate(r.Context(), r)
	if err != nil {
		return err
	}
	if s.config.Tunnel == nil {
		return refuseAs(http.StatusNotFound, joinapi.CodeBadRequest, "this server has no tunnel")
	}
	s.config.Tunnel.ServeNode(w, r, node)
	return nil
}

func (s *Service) wantReady() error {
	if !s.ready.Load() {
		return refuse(joinapi.CodeNotReady, "the server is starting: try again")
	}
	return nil
}

// wantRequest checks what join and rejoin have in common in the header.
func (s *Service) wantRequest(w http.ResponseWriter, r *http.Request) error {
	if err := wantMethod(w, r, http.MethodPost); err != nil {
		return err
	}
	if err := wantJSON(r); err != nil {
		return err
	}
	return s.wantReady()
}

func wantMethod(w http.ResponseWriter, r *http.Request, method string) error {
	if r.Method == method {
		return nil
	}
	w.Header().Set("Allow", method)
	return refuseAs(http.StatusMethodNotAllowed, joinapi.CodeBadRequest, "%s takes %s only", r.URL.Path, method)
}
