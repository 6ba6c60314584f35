package dns

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

const (
	// idleTimeout is how long a TCP connection may be silent.
	idleTimeout = 8 * time.Second
	// stopTimeout bounds the wait for questions being answered when the server stops.
	stopTimeout = 3 * time.Second
)

// Server answers names. Make it with [New].
type Server struct {
	cfg       Config
	log       *zap.Logger
	listen    []netip.AddrPort
	zone      *zone
	forward   *forwarder
	resolvers *hostResolvers
	metrics   *counters
	settings  atomic.Pointer[settings]

	live  *index                // fed by the informers
	names atomic.Pointer[index] // what is answered from: the checkpoint's at first, then live
	dirty chan struct{}         // has room for one: live changed since the last checkpoint
	// onDisk is the digest of the checkpoint that was read at the start; zero if there was none.
	onDisk [sha256.Size]byte

	ready     chan struct{}
	readyOnce sync.Once
}

// New checks the config and reads the checkpoint.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check DNS config: %w", err)
	}
	c = c.withDefaults()
	s := &Server{cfg: c, log: c.Logger, dirty: make(chan struct{}, 1), ready: make(chan struct{})}
	for _, text := range c.ListenAddrs {
		a, err := parseServer(text)
		if err != nil {
			return nil, err
		}
		s.listen = append(s.listen, a)
	}
	s.live = newIndex(func() {
		select {
		case s.dirty <- struct{}{}:
		default:
		}
	})
	s.names.Store(s.live)
	s.settings.Store(&settings{})
	s.zone = newZone(c, s.listen, s.names.Load)
	s.resolvers = &hostResolvers{files: c.Resolvers, own: s.listen, now: time.Now}
	metrics, err := newCounters().register(c.Metrics)
	if err != nil {
		return nil, err
	}
	s.metrics = metrics
	s.forward = newForwarder(c.CacheBytes, exchange, time.Now, s.metrics.event)
	s.forward.cache.resized = func(by int) { metrics.cached.Add(float64(by)) }
	return s, nil
}

// Ready is closed once the server answers: it listens, and knows the cluster's names from the API server or from before.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	restored := s.restore()
	defer s.forward.cache.clear()
	g, ctx := errgroup.WithContext(ctx)
	if s.cfg.Interface != "-" {
		keeper := addressKeeper{name: s.cfg.Interface, addrs: s.listen, log: s.log}
		if err := keeper.ensure(); err != nil {
			return fmt.Errorf("add DNS address: %w", err)
		}
		g.Go(func() error { return keeper.run(ctx) })
	}
	listening, err := s.serve(ctx, g)
	if err != nil {
		return err
	}
	g.Go(func() error { return s.follow(ctx, restored, listening) })
	g.Go(func() error { return s.watchSettings(ctx) })
	g.Go(func() error { return s.keepCheckpoint(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run DNS: %w", err)
	}
	return nil
}

// follow feeds the index from the informers, and answers from it once it is complete.
func (s *Server) follow(ctx context.Context, restored bool, listening <-chan struct{}) error {
	factory := s.cfg.Informers
	if factory == nil {
		factory = informers.NewSharedInformerFactoryWithOptions(s.cfg.Client, 0, informers.WithTransform(trim))
	}
	f, err := newFeed(s.live, factory)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	select {
	case <-ctx.Done():
		return nil
	case <-listening:
	}
	if restored {
		s.readyOnce.Do(func() { close(s.ready) })
	}
	if cache.WaitForCacheSync(ctx.Done(), f.synced...) {
		s.names.Store(s.live)
		s.log.Info("DNS knows the names of the cluster")
		s.readyOnce.Do(func() { close(s.ready) })
	}
	<-ctx.Done()
	if s.cfg.Informers == nil {
		factory.Shutdown()
	}
	return nil
}

// trim drops what makes up much of cached objects and is not read here.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// serve starts the listeners. The channel is closed when all of them listen.
func (s *Server) serve(ctx context.Context, g *errgroup.Group) (<-chan struct{}, error) {
	var servers []*wire.Server
	closeAll := func() {
		for _, each := range servers {
			if each.PacketConn != nil {
				_ = each.PacketConn.Close()
			}
			if each.Listener != nil {
				_ = each.Listener.Close()
			}
		}
	}
	// The address may come to the interface a moment later, or be taken away by a network manager and repaired: listening
	// does not wait for it.
	config := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(controlErr, err)
	}}
	for _, a := range s.listen {
		packets, err := config.ListenPacket(ctx, "udp", a.String())
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		servers = append(servers, &wire.Server{PacketConn: packets, Net: "udp", UDPSize: ednsSize})
		streams, err := config.Listen(ctx, "tcp", a.String())
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		servers = append(servers, &wire.Server{Listener: streams, Net: "tcp"})
	}
	var started sync.WaitGroup
	for _, each := range servers {
		started.Add(1)
		each.Handler = wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) { s.answer(ctx, w, m) })
		each.NotifyStartedFunc = started.Done
		each.IdleTimeout = func() time.Duration { return idleTimeout }
		g.Go(func() error {
			if err := each.ActivateAndServe(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("serve DNS: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			// Questions still open at the timeout are dropped; askers ask again.
			_ = each.ShutdownContext(end)
			return nil
		})
	}
	listening := make(chan struct{})
	g.Go(func() error {
		started.Wait()
		close(listening)
		s.log.Info("DNS listens", zap.Strings("addresses", s.cfg.ListenAddrs))
		return nil
	})
	return listening, nil
}

// resolversChanged is called when the host's resolvers are others than before.
func (s *Server) resolversChanged(servers []netip.AddrPort) {
	s.log.Info("upstream resolvers", zap.Stringers("resolvers", servers))
	// With none left, what is cached is all there is.
	if len(servers) > 0 {
		s.forward.reset()
	}
}
