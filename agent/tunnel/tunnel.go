package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// Servers are the servers of the cluster. A balancer.Balancer implements it.
type Servers interface {
	// Servers returns the addresses of the servers, HOST:PORT. Several may lead to the same server.
	Servers() []string
	// Changed returns a channel that is closed when the result of Servers changes.
	Changed() <-chan struct{}
	// Online returns a channel that is closed while a server answers, Offline one that is closed
	// while none does.
	Online() <-chan struct{}
	Offline() <-chan struct{}
}

// Config configures a [Tunnel]. No field may be zero unless its comment says so.
type Config struct {
	Servers Servers
	// TLS verifies servers and identifies this node. It is called for each connection.
	TLS func() *tls.Config
	// Renewed returns a channel that is closed when TLS has another certificate.
	Renewed func() <-chan struct{}
	// Kubelet is the address at which this process dials the node's kubelet.
	Kubelet string
	// PodCIDRs returns the ranges of this node's pods, none as long as they are not known.
	PodCIDRs func() []netip.Prefix
	// PingAfter is how long a connection may be silent before the server is pinged, PingTimeout how
	// long its answer may take. Zero means 15 and 10 seconds.
	PingAfter, PingTimeout time.Duration
	// FirstRetry and LastRetry are the shortest and longest pause between attempts to connect to
	// one server. Zero means half a second and half a minute.
	FirstRetry, LastRetry time.Duration
	// Logger may be nil for no log.
	Logger *zap.Logger
}

const (
	// connectTimeout bounds one attempt to open a tunnel.
	connectTimeout = 10 * time.Second
	// dialTimeout bounds a connection to a target.
	dialTimeout = 10 * time.Second
)

// Tunnel keeps the node's tunnels. Make it with [New].
type Tunnel struct {
	config Config
	log    *zap.Logger
	live   registry
	work   workers
	// own returns the machine's addresses, none of which is a pod's.
	own func() ([]net.Addr, error)
}

// New checks the config. Run dials.
func New(c Config) (*Tunnel, error) {
	if c.Servers == nil || c.TLS == nil || c.Renewed == nil || c.PodCIDRs == nil || c.Kubelet == "" {
		return nil, errors.New("tunnel: Servers, TLS, Renewed, PodCIDRs and Kubelet must all be set")
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	for _, d := range []struct {
		of   *time.Duration
		zero time.Duration
	}{{&c.PingAfter, 15 * time.Second}, {&c.PingTimeout, 10 * time.Second}, {&c.FirstRetry, time.Second / 2},
		{&c.LastRetry, 30 * time.Second}} {
		if *d.of == 0 {
			*d.of = d.zero
		}
	}
	return &Tunnel{config: c, log: c.Logger, own: net.InterfaceAddrs}, nil
}

// Open returns the names of the servers that this node has a tunnel to.
func (t *Tunnel) Open() []string { return t.live.names() }

// Run keeps a tunnel to each server until ctx ends.
func (t *Tunnel) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		t.work.wait()
	}()
	back := newSignal()
	running.Go(func() { t.watchOnline(ctx, back) })

	keepers := map[string]context.CancelFunc{}
	for {
		changed := t.config.Servers.Changed()
		wanted := map[string]bool{}
		for _, address := range t.config.Servers.Servers() {
			wanted[address] = true
			if keepers[address] == nil {
				keeperContext, stop := context.WithCancel(ctx)
				keepers[address] = stop
				k := &keeper{
					tunnel:  t,
					address: address,
					back:    back,
					log:     t.log.With(zap.String("server", address)),
				}
				running.Go(func() { k.run(keeperContext) })
			}
		}
		for address, stop := range keepers {
			if !wanted[address] {
				stop()
				delete(keepers, address)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// watchOnline notifies the keepers when a server is back after none answered.
func (t *Tunnel) watchOnline(ctx context.Context, back *signal) {
	for {
		for _, next := range []func() <-chan struct{}{t.config.Servers.Offline, t.config.Servers.Online} {
			select {
			case <-ctx.Done():
				return
			case <-next():
			}
		}
		back.fire()
	}
}

// jitter spreads the pauses, so that nodes that lost their server together do not come back
// together.
const jitter = 0.5

// keeper keeps the tunnel to one server.
type keeper struct {
	tunnel  *Tunnel
	address string
	back    *signal
	log     *zap.Logger
}

// overlap is how long the next tunnel to the same server may take to be registered after it ended
// the previous one.
const overlap = 200 * time.Millisecond

// run keeps a tunnel open until ctx ends.
func (k *keeper) run(ctx context.Context) {
	t := k.tunnel
	backoff := retry.Backoff{First: t.config.FirstRetry, Last: t.config.LastRetry, Jitter: jitter}
	var failures retry.Failures
	// lost is whether the loss of the tunnel was logged; replace is whether to open a tunnel
	// although the server has one.
	lost, replace := false, false
	for ctx.Err() == nil {
		// Before connecting, so that no renewal is missed.
		renewed, back := t.config.Renewed(), k.back.wait()
		var open []string
		if !replace {
			open = t.live.names()
		}
		l, err := t.connect(ctx, k.address, open)
		var other *duplicateError
		switch {
		case errors.As(err, &other):
			// Another address leads to the same server. This one matters once the tunnel through
			// that one ends.
			lost = false
			backoff.Reset()
			if t.live.waitGone(ctx, other.server) {
				k.pause(ctx, backoff.Next(), renewed, back)
			}
			continue
		case err != nil:
			if ctx.Err() == nil && failures.News(err) {
				k.log.Debug("no tunnel to server, trying again", zap.Error(err))
			}
			k.pause(ctx, backoff.Next(), renewed, back)
			continue
		}
		if lost {
			k.log.Info("tunnel to server is back")
		} else {
			k.log.Debug("tunnel to server is open")
		}
		lost, replace = false, false
		failures.Recovered()
		opened := time.Now()
		t.live.add(l.server)
		l.start(ctx, t)
		select {
		case <-renewed:
			// The present tunnel stays open: once the server has the next one, it ends this as soon
			// as nothing uses it.
			replace = true
			continue
		case <-l.ended:
		}
		if time.Since(opened) > t.config.LastRetry {
			backoff.Reset()
		}
		// When two keepers reach one server at once, the later tunnel ends the earlier one a moment
		// before it is registered here.
		k.pause(ctx, overlap, nil, nil)
		if ctx.Err() == nil && !t.live.has(l.server) {
			k.log.Warn("tunnel to server lost, connecting again", zap.Error(l.err))
			lost = true
		}
		k.pause(ctx, backoff.Next(), nil, back)
	}
}

// pause waits for d, or until renewed or back make an attempt worthwhile.
func (k *keeper) pause(ctx context.Context, d time.Duration, renewed, back <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-renewed:
	case <-back:
	}
}
