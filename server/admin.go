package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/server/revocation"
)

const (
	// firstAdminRetry and lastAdminRetry bound the pauses after which writing the administrator's
	// new kubeconfig is tried again.
	firstAdminRetry = time.Second
	lastAdminRetry  = 5 * time.Minute
)

// newGuard makes what refuses revoked certificates. It reads its list in memory, so it cannot lock
// itself out.
func (s *Server) newGuard() (*revocation.Guard, error) {
	client, err := kubernetes.NewForConfig(s.loopback.Config(&user.DefaultInfo{
		Name: "system:mote", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated},
	}))
	if err != nil {
		return nil, fmt.Errorf("make client for the list of revoked certificates: %w", err)
	}
	return revocation.New(revocation.Config{Client: client, Logger: s.config.Logger.Named("revocation")})
}

// keepAdmin gives this machine's administrator a new certificate whenever the present one is
// revoked, also one that was renewed after its user was: who owns the machine cannot be locked out
// of it, and a leaked kubeconfig can be revoked with that very file.
func (s *Server) keepAdmin(ctx context.Context, revoked *revocation.Guard) error {
	changed := make(chan struct{}, 1)
	revoked.OnChange(func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	select {
	case <-revoked.Loaded():
	case <-ctx.Done():
		return nil
	}
	log := s.config.Logger.Named("revocation")
	backoff, failures := retry.Backoff{First: firstAdminRetry, Last: lastAdminRetry}, retry.Failures{}
	// written says that the file has what the keys have.
	written := true
	for {
		var again <-chan time.Time
		if err := s.replaceRevokedAdmin(ctx, revoked, &written); err != nil {
			if ctx.Err() == nil && failures.News(err) {
				log.Error("the administrator's certificate is revoked and there is no new kubeconfig yet, trying again",
					zap.Error(err))
			}
			again = time.After(backoff.Next())
		} else {
			backoff.Reset()
			failures.Recovered()
		}
		select {
		case <-changed:
		case <-s.renewedAdmin:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Server) replaceRevokedAdmin(ctx context.Context, revoked *revocation.Guard, written *bool) error {
	cert, err := s.pki.AdminCertificate()
	if err != nil {
		return err
	}
	_, is, err := revoked.Revoked(ctx, cert)
	if err != nil {
		return err
	}
	if is {
		// All of them are dated back to one day, so the new one has to be named.
		accept := func(cert *x509.Certificate) error { return revoked.Admit(ctx, cert) }
		if err := s.pki.ReplaceAdmin(time.Now(), accept); err != nil {
			return fmt.Errorf("replace the administrator's certificate: %w", err)
		}
		*written = false
	}
	if *written {
		return nil
	}
	if err := s.writeKubeconfig(); err != nil {
		return err
	}
	*written = true
	s.config.Logger.Named("revocation").Info(
		"wrote a new administrator's kubeconfig, as the certificate in the old one is revoked",
		zap.String("kubeconfig", s.config.KubeconfigOutput))
	return nil
}

// writeKubeconfig writes the administrator's kubeconfig for those who may read it.
func (s *Server) writeKubeconfig() error {
	return s.pki.WriteKubeconfig(s.config.KubeconfigOutput, s.url(),
		pki.Access{Mode: s.config.KubeconfigMode, GID: s.config.KubeconfigGID})
}
