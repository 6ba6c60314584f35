package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// dialTimeout bounds one attempt at one server, handshake included.
	dialTimeout = 4 * time.Second
	// firstRetry and lastRetry are the pauses between rounds over all servers while none answers.
	firstRetry, lastRetry = 500 * time.Millisecond, 8 * time.Second
	// maxServers bounds the known servers: discovery finds a server again at each address it moves
	// to.
	maxServers = 16
	// roundsBeforeDiscovery keeps nodes from searching the local network whenever a server
	// restarts.
	roundsBeforeDiscovery = 3
)

// ErrOffline means that none of the known servers answers.
var ErrOffline = errors.New("no server answers")

// errStopped means that Run has ended.
var errStopped = errors.New("connections to servers are shut down")

// Config configures a [Balancer].
type Config struct {
	// Servers are the known servers as HOST:PORT, the preferred one first.
	Servers []string
	// TLS verifies servers and identifies this node. It is called for each connection.
	TLS func() *tls.Config
	// Discover returns further addresses to try when none of the known servers answers; nil means
	// there is no way to find any. They are only hints: TLS decides.
	Discover func(ctx context.Context) []string
	// Found is called with a discovered server that TLS has verified; may be nil.
	Found func(server string)
	// Logger may be nil for no log.
	Logger *zap.Logger
}

// Balancer dials servers. Make it with [New]; [Balancer.Run] has to run for it to recover after no
// server answered.
type Balancer struct {
	config Config
	log    *zap.Logger
	dialer net.Dialer

	mu      sync.Mutex        // guards the fields below
	servers []string          // in the order of attempts: the last one that answered is first
	reached map[string]string // by server, the address it was last verified at
	online  chan struct{}     // closed while isUp
	offline chan struct{}     // closed while not
	isUp    bool
	lastErr error
	used    string // the server that answered last; empty before the first
	open    map[net.Conn]struct{}
	stopped bool          // Run has ended: nothing would close a new connection
	wake    chan struct{} // capacity 1: went offline
	changed chan struct{} // closed when the set of servers changes
}

// New returns a balancer, which is online until no server answers.
func New(c Config) *Balancer {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	b := &Balancer{
		config:  c,
		log:     c.Logger,
		servers: slices.Clone(c.Servers),
		reached: map[string]string{},
		online:  make(chan struct{}),
		offline: make(chan struct{}),
		isUp:    true,
		open:    map[net.Conn]struct{}{},
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	close(b.online)
	return b
}

// Servers returns the known servers, the one to try first in front.
func (b *Balancer) Servers() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.servers)
}

// Used returns the server that answered last, or why none answers now. Both are zero before the
// first attempt.
func (b *Balancer) Used() (server string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.isUp {
		return "", fmt.Errorf("%w: %w", ErrOffline, b.lastErr)
	}
	return b.used, nil
}

// Addresses returns where the known servers are, HOST:PORT: as they are known, and the addresses
// behind names that verified connections led to.
func (b *Balancer) Addresses() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Clone(b.servers)
	for _, s := range b.servers {
		if a, ok := b.reached[s]; ok && a != s {
			all = append(all, a)
		}
	}
	return all
}

// Changed returns a channel that is closed when the set of known servers changes. Their order does
// not count.
func (b *Balancer) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// announce fires Changed if the set of servers is not the former one. The caller holds mu.
func (b *Balancer) announce(were []string) {
	is := b.servers
	if len(is) == len(were) && !slices.ContainsFunc(is, func(s string) bool { return !slices.Contains(were, s) }) {
		return
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// Set replaces the known servers. The one in use stays in front if it is among the new ones.
func (b *Balancer) Set(servers []string) {
	if len(servers) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	current := b.servers
	b.servers = slices.Clone(servers)
	b.announce(current)
	if len(current) > 0 && slices.Contains(servers, current[0]) {
		b.prefer(current[0])
	}
}

// prefer moves a server to the front. The caller holds mu.
func (b *Balancer) prefer(server string) {
	were := b.servers
	b.servers = slices.DeleteFunc(slices.Clone(were), func(s string) bool { return s == server })
	b.servers = slices.Insert(b.servers, 0, server)
	b.servers = b.servers[:min(len(b.servers), maxServers)]
	b.announce(were)
}

// Online returns a channel that is closed while the balancer is online. After it went offline, it
// returns another one.
func (b *Balancer) Online() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.online
}

// Offline returns a channel that is closed while no server answers. After the balancer came back
// online, it returns another one.
func (b *Balancer) Offline() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.offline
}

// Up reports whether the balancer is online.
func (b *Balancer) Up() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.isUp
}

// DialTLS connects to a server that answers, whatever the address. While offline it fails at once:
// Run finds out when a server is back.
func (b *Balancer) DialTLS(ctx context.Context, _, _ string) (net.Conn, error) {
	b.mu.Lock()
	up, last := b.isUp, b.lastErr
	b.mu.Unlock()
	if !up {
		return nil, fmt.Errorf("%w: %w", ErrOffline, last)
	}
	conn, _, err := b.round(ctx, b.Servers())
	switch {
	case err == nil:
		return conn, nil
	case OutOfResources(err):
		// The servers may well answer, so clients must keep trying them.
		return nil, fmt.Errorf("connect to server: %w", err)
	case ctx.Err() == nil:
		b.lost(err)
	}
	return nil, fmt.Errorf("%w: %w", ErrOffline, err)
}

// OutOfResources reports whether a connection failed for want of file descriptors or memory of this
// machine, which says nothing about any server.
func OutOfResources(err error) bool {
	for _, each := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, each) {
			return true
		}
	}
	return false
}

// round tries servers one after the other, and returns a connection to the first that answers.
func (b *Balancer) round(ctx context.Context, servers []string) (conn net.Conn, server string, err error) {
	var errs []error
	for _, s := range servers {
		conn, err := b.dial(ctx, s)
		if err == nil {
			b.mu.Lock()
			if len(b.servers) == 0 || b.servers[0] != s {
				b.log.Info("using another server", zap.String("server", s))
			}
			b.prefer(s)
			b.used = s
			b.mu.Unlock()
			return conn, s, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, "", errors.New("no server is known")
	}
	return nil, "", errors.Join(errs...)
}

// dial connects to one server and verifies it.
func (b *Balancer) dial(ctx context.Context, server string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := b.dialer.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	t := &tracked{Conn: raw, balancer: b}
	b.mu.Lock()
	stopped := b.stopped
	b.open[t] = struct{}{}
	b.mu.Unlock()
	if stopped {
		_ = t.Close()
		return nil, errStopped
	}
	conn := tls.Client(t, b.config.TLS())
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = t.Close()
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.reached, func(s, _ string) bool { return !slices.Contains(b.servers, s) })
	b.reached[server] = raw.RemoteAddr().String()
	return conn, nil
}

// tracked is a connection that CloseAll closes.
type tracked struct {
	net.Conn
	balancer *Balancer
}

func (t *tracked) Close() error {
	t.balancer.mu.Lock()
	delete(t.balancer.open, t)
	t.balancer.mu.Unlock()
	return t.Conn.Close()
}

// CloseAll closes all connections, so that clients open new ones: with a new certificate, or to
// another server.
func (b *Balancer) CloseAll() {
	b.mu.Lock()
	var all []net.Conn
	for c := range b.open {
		all = append(all, c)
	}
	b.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

func (b *Balancer) lost(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastErr = err
	// A stopped balancer closes its connections, also those being opened: that says nothing about
	// the servers.
	if !b.isUp || b.stopped {
		return
	}
	b.isUp, b.online = false, make(chan struct{})
	close(b.offline)
	b.log.Warn("no server answers: this node continues with what it has cached", zap.Strings("servers", b.servers),
		zap.Error(err))
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *Balancer) found(server string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.isUp {
		return
	}
	b.isUp, b.lastErr, b.offline = true, nil, make(chan struct{})
	close(b.online)
	b.log.Info("a server answers again", zap.String("server", server))
}

// Run searches for servers while none answers, until ctx ends. Then it closes all connections, and
// no more can be opened.
func (b *Balancer) Run(ctx context.Context) error {
	defer func() {
		b.mu.Lock()
		b.stopped = true
		b.mu.Unlock()
		b.CloseAll()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
			b.search(ctx)
		}
	}
}

// search tries all servers until one answers.
func (b *Balancer) search(ctx context.Context) {
	backoff := retry.Backoff{First: firstRetry, Last: lastRetry}
	for round := 1; backoff.Wait(ctx) == nil; round++ {
		known := b.Servers()
		conn, server, err := b.round(ctx, known)
		if err != nil && round >= roundsBeforeDiscovery && b.config.Discover != nil {
			var others []string
			for _, s := range b.config.Discover(ctx) {
				if !slices.Contains(known, s) {
					others = append(others, s)
				}
			}
			if len(others) > 0 {
				conn, server, err = b.round(ctx, others)
			}
			if err == nil && b.config.Found != nil {
				b.config.Found(server)
			}
		}
		if err == nil {
			_ = conn.Close()
			b.found(server)
			return
		}
		b.lost(err)
	}
}
