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
	// refreshEvery is how often a node asks for the cluster's settings although
	// nothing tells it to.
	refreshEvery = time.Hour
	// maxServers bounds how many former addresses are remembered.
	maxServers = 16
	// A connection without traffic is asked whether it lives: a partition is
	// noticed after the sum of both.
	pingAfter, pingTimeout = 10 * time.Second, 5 * time.Second
)

// Membership is a node that has joined: who it is and how it reaches its servers.
// [Membership.Run] keeps it.
type Membership struct {
	config    Config
	folder    folder
	ca        *x509.Certificate
	balancer  *balancer.Balancer
	transport *http.Transport

	certificate atomic.Pointer[tls.Certificate]
	// expired has room for one: a server says that the certificate is of no use.
	expired chan struct{}
	// again has room for one: something says that the settings are others.
	again chan struct{}

	mu      sync.Mutex // guards what follows
	stored  stored
	renewed chan struct{} // closed when there is another certificate
	learned chan struct{} // closed when other settings have been kept
}

func newMembership(c Config, f folder, was stored, ca *x509.Certificate, own *tls.Certificate) *Membership {
	m := &Membership{config: c, folder: f, ca: ca, stored: was, expired: make(chan struct{}, 1), again: make(chan struct{}, 1), renewed: make(chan struct{}), learned: make(chan struct{})}
	m.certificate.Store(own)
	bc := balancer.Config{
		Servers: was.Cluster.Servers, TLS: m.TLS, Found: m.found, Logger: c.Logger,
	}
	if c.Discover != nil {
		pin := joinapi.Pin(ca.Raw)
		bc.Discover = func(ctx context.Context) []string { return c.Discover(ctx, pin) }
	}
	m.balancer = balancer.New(bc)
	m.transport = &http.Transport{
		DialTLSContext: m.balancer.DialTLS, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return m
}

// merge joins lists of servers without repeats.
func merge(lists ...[]string) []string {
	var out []string
	for _, s := range slices.Concat(lists...) {
		if !slices.Contains(out, s) && len(out) < maxServers {
			out = append(out, s)
		}
	}
	return out
}

// NodeName is the name the node has joined under.
func (m *Membership) NodeName() string { return m.config.NodeName }

// Transport reaches whichever server answers, whatever host a request names.
func (m *Membership) Transport() *http.Transport { return m.transport }

// Balancer knows the servers and dials them.
func (m *Membership) Balancer() *balancer.Balancer { return m.balancer }

// CAFile is the file with the CA that servers, and callers of the kubelet, are
// trusted by.
func (m *Membership) CAFile() string { return m.folder.path(caName) }

// Cluster is what was last heard of the cluster's settings.
func (m *Membership) Cluster() joinapi.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stored.Cluster
}

// now is the machine's clock, unless it cannot be right: a board without a battery
// starts in 1970, and no certificate is valid then. Only then does what a server
// said once count, as that server's clock may have been ahead itself.
func (m *Membership) now() time.Time {
	now := m.config.Now()
	if !now.Before(wallclock.Floor) {
		return now
	}
	if known := m.Cluster().Time; known.After(wallclock.Floor) {
		return known
	}
	return wallclock.Floor
}

// TLS is how to talk to a server: who it must be, and who this node is. It is
// made anew for each connection, as certificates change.
func (m *Membership) TLS() *tls.Config {
	c := tlsConfig(m.ca, m.now)
	c.NextProtos = []string{"h2", "http/1.1"}
	if own := m.certificate.Load(); own != nil {
		c.Certificates = []tls.Certificate{*own}
	}
	return c
}

// Renewed returns a channel that is closed when TLS has another certificate.
func (m *Membership) Renewed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.renewed
}

// Learned returns a channel that is closed when Cluster says something else, and
// a restart would say it, too.
func (m *Membership) Learned() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.learned
}

// Learn takes over what a server says of the cluster.
func (m *Membership) Learn(c joinapi.Cluster) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.stored.Cluster
	c.Servers = merge(c.Servers, was.Servers)
	// While servers are upgraded one after the other, an older one says nothing of it.
	c.NetworkBackend = cmp.Or(c.NetworkBackend, was.NetworkBackend)
	later := c.Time.Sub(was.Time) > refreshEvery
	m.stored.Cluster = c
	c.Time = was.Time
	if !reflect.DeepEqual(was, c) || later {
		if err := m.folder.save(m.stored); err != nil {
			m.config.Logger.Warn("what the server says of the cluster was not kept", zap.Error(err))
		} else {
			close(m.learned)
			m.learned = make(chan struct{})
		}
	}
	was.Servers, c.Servers, was.Time = nil, nil, c.Time
	was.MoteVersion, was.KubernetesVersion = c.MoteVersion, c.KubernetesVersion
	// Who waits for Learned follows it.
	was.NetworkBackend = c.NetworkBackend
	if !reflect.DeepEqual(was, c) {
		m.config.Logger.Warn("the cluster's settings have changed: restart mote on this node to follow them")
	}
	m.balancer.Set(m.stored.Cluster.Servers)
}

// found remembers a server that was discovered and has proved to be one.
func (m *Membership) found(server string) {
	c := m.Cluster()
	c.Servers = merge([]string{server}, c.Servers)
	m.Learn(c)
}

// Refresh asks for the cluster's settings.
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

// Run keeps the membership until ctx ends: connections, settings and certificate.
func (m *Membership) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.balancer.Run(ctx) })
	g.Go(func() error { return m.keepCertificate(ctx) })
	g.Go(func() error { return m.keepSettings(ctx) })
	err := g.Wait()
	m.transport.CloseIdleConnections()
	return err
}

// AskAgain makes Run ask for the cluster's settings soon.
func (m *Membership) AskAgain() {
	select {
	case m.again <- struct{}{}:
	default:
	}
}

// keepSettings asks for the settings at the start, each hour, when a server
// answers again after none did, and when it is told to.
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
			// Nothing waits for it; what was known goes on being true.
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
		case <-m.again:
			timer.Stop()
		case <-timer.C:
		}
	}
}
