package join

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"
	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/certificate/csr"

	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/retry"
)

const (
	// checkEvery bounds a wait for a time of day: timers do not notice when the clock is set or the
	// machine sleeps.
	checkEvery = time.Minute
	// signTimeout bounds the wait for a signature.
	signTimeout = 2 * time.Minute
	// lastRenewRetry is the longest pause between attempts to renew.
	lastRenewRetry = 5 * time.Minute
)

// renewal returns when to renew a certificate: after two thirds of its lifetime, which leaves many
// attempts to a machine that is often off.
func renewal(c *tls.Certificate) time.Time {
	life := c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)
	return c.Leaf.NotAfter.Add(-life / 3)
}

// keepCertificate renews the client certificate through the certificates API, and rejoins with the
// node's secret if the certificate is no longer valid.
func (m *Membership) keepCertificate(ctx context.Context) error {
	log := m.config.Logger
	backoff := retry.Backoff{First: firstRetry, Last: lastRenewRetry}
	var failures retry.Failures
	rejected := false // a server has refused the certificate
	for {
		wait := checkEvery
		own, now := m.certificate.Load(), m.now()
		var err error
		switch {
		case rejected || own == nil || now.After(own.Leaf.NotAfter) || now.Before(own.Leaf.NotBefore):
			// A certificate is not valid yet if the server's clock was ahead when it signed.
			err = m.rejoin(ctx)
		case now.After(renewal(own)):
			err = m.renew(ctx)
		default:
			wait = min(wait, renewal(own).Sub(now)+time.Second)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			wait = backoff.Next()
			if failures.News(err) {
				log.Warn("certificate of this node not renewed, trying again: " + err.Error())
			}
		} else {
			if failures.Recovered() {
				log.Info("certificate of this node is renewed")
			}
			rejected = false
			backoff.Reset()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.expired:
			rejected = true
			timer.Stop()
		case <-timer.C:
		}
	}
}

// install makes clients use a new certificate, and reconnect with it.
func (m *Membership) install(c *tls.Certificate) {
	m.certificate.Store(c)
	m.mu.Lock()
	close(m.renewed)
	m.renewed = make(chan struct{})
	m.mu.Unlock()
	m.config.Logger.Info("this node has a new certificate", zap.Time("until", c.Leaf.NotAfter))
	m.balancer.CloseAll()
}

// rejoin requests a certificate from each known server in turn, with the node's secret as proof.
func (m *Membership) rejoin(ctx context.Context) error {
	var errs []error
	for _, server := range m.balancer.Servers() {
		transport := &http.Transport{TLSClientConfig: tlsConfig(m.ca, m.now), DisableKeepAlives: true}
		response, own, err := requestCertificate(ctx, m.folder, transport, server, joinapi.PathRejoin, "", m.config)
		if refused(err, joinapi.CodeNodeUnknown) && m.config.Token != "" {
			token, parseErr := joinapi.ParseToken(m.config.Token)
			if parseErr != nil {
				return parseErr
			}
			response, own, err = requestCertificate(ctx, m.folder, transport, server, joinapi.PathJoin, token.Secret,
				m.config)
		}
		if err == nil {
			m.install(own)
			m.Learn(response.Cluster)
			return nil
		}
		if refused(err, joinapi.CodeNodeUnknown) {
			return fmt.Errorf("%w: give --token to join again", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// renew requests the next certificate, authenticated by the present one.
func (m *Membership) renew(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "https://" + ServerName, Transport: m.transport})
	if err != nil {
		return fmt.Errorf("create client for certificates: %w", err)
	}
	key, keyPEM, csrPEM, err := newRequest(m.config.NodeName)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	usages := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	name, uid, err := csr.RequestCertificateWithContext(ctx, client, csrPEM, "",
		certificatesv1.KubeAPIServerClientKubeletSignerName, nil, usages, key)
	if err != nil {
		return fmt.Errorf("request certificate: %w", err)
	}
	certPEM, err := csr.WaitForCertificate(ctx, client, name, uid)
	if err != nil {
		return fmt.Errorf("wait for certificate %s: %w", name, err)
	}
	own, err := m.folder.saveCertificate(certPEM, keyPEM)
	if err != nil {
		return err
	}
	m.install(own)
	return nil
}
