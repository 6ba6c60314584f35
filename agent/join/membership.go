package join

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/agent/balancer"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/internal/wallclock"
)

const (
	// refreshEvery is how often a node requests the cluster's settings without any other reason.
	refreshEvery = time.Hour
	// maxServers bounds the known addresses of servers.
	maxServers = 16
	// An idle connection is pinged, so that a partition is noticed after the sum of both.
	pingAfter, pingTimeout = 10 * time.Second, 5 * time.Second
)

// Membership is a node that has joined: its identity, and how it reaches its servers.
// [Membership.Run] maintains it.
type Membership struct {
	config    Config
	folder    folder
	ca        *x509.Certificate
	balancer  *balancer.Balancer
	transport *http.Transport

	certificate atomic.Pointer[tls.Certificate]
	// expired has capacity 1: a server has refused the certificate.
	expired chan struct{}
	// refresh has capacity 1: the settings have probably changed.
	refresh chan struct{}

	// silent are servers of the user's that have not shown whose they are. They are tried, and not
	// stored.
	silent []string

	mu      sync.Mutex // guards the fields below
	stored  stored
	renewed chan struct{} // closed when the certificate is replaced
	learned chan struct{} // closed when changed settings are on disk
}

func newMembership(c Config, f folder, was stored, ca *x509.Certificate, own *tls.Certificate,
	silent []string) *Membership {
	m := &Membership{
		config:  c,
		folder:  f,
		ca:      ca,
		silent:  silent,
		stored:  was,
		expired: make(chan struct{}, 1),
		refresh: make(chan struct{}, 1),
		renewed: make(chan struct{}),
		learned: make(chan struct{}),
	}
	m.certificate.Store(own)
	bc := balancer.Config{
		Servers: merge(was.Cluster.Servers, silent),
		TLS:     m.TLS,
		Found:   m.found,
		Logger:  c.Logger,
	}
	if c.Discover != nil {
		pin := joinapi.Pin(ca.Raw)
		bc.Discover = func(ctx context.Context) []string { return c.Discover(ctx, pin) }
	}
	m.balancer = balancer.New(bc)
	m.transport = &http.Transport{
		DialTLSContext:    m.balancer.DialTLS,
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   90 * time.Second,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return m
}

// merge joins lists of servers without duplicates.
func merge(lists ...[]string) []string {
	var out []string
	for _, s := range slices.Concat(lists...) {
		if !slices.Contains(out, s) && len(out) < maxServers {
			out = append(out, s)
		}
	}
	return out
}

// NodeName returns the name that the node has joined under.
func (m *Membership) NodeName() string { return m.config.NodeName }

// Transport returns a transport to whichever server answers, whatever the host of a request.
func (m *Membership) Transport() *http.Transport { return m.transport }

// Balancer returns the balancer, which dials the servers.
func (m *Membership) Balancer() *balancer.Balancer { return m.balancer }

// CAFile returns the file with the CA of the servers, and of the clients of the kubelet.
func (m *Membership) CAFile() string { return m.folder.path(caName) }

// Cluster returns the cluster's settings as last received.
func (m *Membership) Cluster() joinapi.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored.Cluster
}

func (m *Membership) now() time.Time { return plausible(m.config.Now(), m.Cluster().Time) }

// plausible returns the machine's time unless that cannot be right: a board without a battery
// starts in 1970, when no certificate is valid. Only then is the time that a server once sent used
// instead, as that server's clock may have been ahead itself.
func plausible(now, known time.Time) time.Time {
	switch {
	case !now.Before(wallclock.Floor):
		return now
	case known.After(wallclock.Floor):
		return known
	}
	return wallclock.Floor
}

// TLS returns a config that verifies servers and identifies this node. Each connection needs a new
// one, as the certificate changes.
func (m *Membership) TLS() *tls.Config {
	c := tlsConfig(m.ca, m.now)
	c.NextProtos = []string{"h2", "http/1.1"}
	if own := m.certificate.Load(); own != nil {
		c.Certificates = []tls.Certificate{*own}
	}
	return c
}

// Renewed returns a channel that is closed when the certificate is replaced.
func (m *Membership) Renewed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.renewed
}

// Learned returns a channel that is closed when the result of Cluster has changed, and is on disk
// for a restart.
func (m *Membership) Learned() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.learned
}

// Learn applies settings of the cluster from a server.
func (m *Membership) Learn(c joinapi.Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.stored.Cluster
	c.Servers = merge(c.Servers, was.Servers)
	// During a rolling upgrade, an older server does not send it.
	c.NetworkBackend = cmp.Or(c.NetworkBackend, was.NetworkBackend)
	later := c.Time.Sub(was.Time) > refreshEvery
	m.stored.Cluster = c
	c.Time = was.Time
	if !reflect.DeepEqual(was, c) || later {
		if err := m.folder.save(m.stored); err != nil {
			m.config.Logger.Warn("the cluster's settings could not be stored", zap.Error(err))
		} else {
			close(m.learned)
			m.learned = make(chan struct{})
		}
	}
	was.Servers, c.Servers, was.Time = nil, nil, c.Time
	was.MoteVersion, was.KubernetesVersion = c.MoteVersion, c.KubernetesVersion
	// Users of Learned follow this one without a restart.
	was.NetworkBackend = c.NetworkBackend
	if !reflect.DeepEqual(was, c) {
		m.config.Logger.Warn("the cluster's settings have changed: restart mote on this node to follow them")
	}
	m.balancer.Set(merge(m.stored.Cluster.Servers, m.silent))
}

// found stores a server that was discovered and verified.
func (m *Membership) found(server string) {
	c := m.Cluster()
	c.Servers = merge([]string{server}, c.Servers)
	m.Learn(c)
}

// Refresh requests the cluster's settings.
func (m *Membership) Refresh(ctx context.Context) error {
	var c joinapi.Cluster
	_, err := exchange(ctx, m.transport, http.MethodGet, ServerName, joinapi.PathConfig, "", nil, &c)
	if err == nil {
		m.Learn(c)
		return nil
	}
	if refused(err, joinapi.CodeCertificateInvalid) {
		select {
		case m.expired <- struct{}{}:
		default:
		}
	}
	return err
}

// Run maintains connections, settings and certificate until ctx ends.
func (m *Membership) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.balancer.Run(ctx) })
	g.Go(func() error { return m.keepCertificate(ctx) })
	g.Go(func() error { return m.keepSettings(ctx) })
	err := g.Wait()
	m.transport.CloseIdleConnections()
	return err
}

// RefreshSoon makes Run request the cluster's settings soon.
func (m *Membership) RefreshSoon() {
	select {
	case m.refresh <- struct{}{}:
	default:
	}
}

// keepSettings requests the settings at the start, every hour, when a server answers again after
// none did, and after RefreshSoon.
func (m *Membership) keepSettings(ctx context.Context) error {
	backoff := retry.Backoff{First: firstRetry, Last: time.Minute}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.balancer.Online():
		}
		wait := refreshEvery
		if err := m.Refresh(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Nothing waits for it, and the known settings stay in effect.
			m.config.Logger.Debug("cluster settings not refreshed", zap.Error(err))
			if !errors.Is(err, balancer.ErrOffline) {
				wait = backoff.Next()
			}
		} else {
			backoff.Reset()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.balancer.Offline():
			timer.Stop()
		case <-m.refresh:
			timer.Stop()
		case <-timer.C:
		}
	}
}
