package dns

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Server is a DNS server. Make it with [New].
type Server struct {
	cfg       Config
	log       *zap.Logger
	listen    []netip.AddrPort
	zone      *zone
	forward   *forwarder
	resolvers *hostResolvers
	metrics   *counters
	settings  atomic.Pointer[settings]
	// settingsKnown is set once the ConfigMap has been read, or is known not to exist.
	settingsKnown atomic.Bool

	outsideMu sync.Mutex // guards outside
	outside   string     // the note last logged

	live  *index                // fed by the informers
	names atomic.Pointer[index] // answers come from it: the checkpoint's at first, then live
	dirty chan struct{}         // capacity 1: live changed since the last checkpoint
	// onDisk is the digest of the checkpoint that Run found; zero if there was none.
	onDisk [sha256.Size]byte

	ready     chan struct{}
	readyOnce sync.Once
}

// New checks the config and allocates a server; [Server.Run] opens its sockets.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check DNS config: %w", err)
	}
	c = c.withDefaults()
	s := &Server{
		cfg:   c,
		log:   c.Logger,
		dirty: make(chan struct{}, 1),
		ready: make(chan struct{}),
	}
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
	own := make([]netip.Addr, len(s.listen))
	for i, a := range s.listen {
		own[i] = a.Addr()
	}
	s.resolvers = newHostResolvers(c.Resolvers, own, time.Now, s.log)
	metrics, err := newCounters().register(c.Metrics)
	if err != nil {
		return nil, err
	}
	s.metrics = metrics
	s.forward = newForwarder(c.CacheBytes, newExchanger(), time.Now, s.metrics.event)
	s.forward.cache.resized = func(by int) { metrics.cached.Add(float64(by)) }
	return s, nil
}

// Ready is closed once the server listens and knows the cluster's names, from the API server or
// from its checkpoint.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run answers queries until ctx ends. All of its goroutines have ended when it returns.
func (s *Server) Run(ctx context.Context) error {
	restored := s.restore()
	keeper := addressKeeper{name: s.cfg.Interface, addrs: s.listen, log: s.log}
	if keeper.name != "-" {
		if err := keeper.ensure(); err != nil {
			return fmt.Errorf("add DNS address: %w", err)
		}
	}
	listeners, err := bind(ctx, s.listen, s.answer)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.forward.cache.clear()
	stop := ctx
	g, ctx := errgroup.WithContext(ctx)
	if keeper.name != "-" {
		g.Go(func() error { return keeper.run(ctx) })
	}
	for _, l := range listeners {
		g.Go(func() error { return l.serve(ctx) })
	}
	g.Go(func() error { return s.follow(ctx, restored, listeners) })
	g.Go(func() error { return s.watchSettings(ctx) })
	g.Go(func() error { return s.keepCheckpoint(ctx) })
	err = g.Wait()
	if err == nil || stop.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("run DNS: %w", err)
}

// follow feeds the index from the informers, and makes the server answer from it once it is
// complete.
func (s *Server) follow(ctx context.Context, restored bool, listeners []*listener) error {
	factory := s.cfg.Informers
	if factory == nil {
		factory = informers.NewSharedInformerFactoryWithOptions(s.cfg.Client, 0, informers.WithTransform(trim))
		defer factory.Shutdown()
	}
	f := newFeed(s.live, factory)
	defer f.close()
	if err := f.follow(); err != nil {
		return err
	}
	if s.cfg.Informers == nil {
		factory.Start(ctx.Done())
	} else {
		// A request to the owner of the factory, who decides when they end.
		factory.Start(wait.NeverStop)
	}
	for _, l := range listeners {
		select {
		case <-ctx.Done():
			return nil
		case <-l.started:
		}
	}
	s.log.Info("DNS listens", zap.Strings("addresses", s.cfg.ListenAddrs))
	if restored {
		s.readyOnce.Do(func() { close(s.ready) })
	}
	if cache.WaitForCacheSync(ctx.Done(), f.synced...) {
		s.names.Store(s.live)
		s.log.Info("DNS knows the names of the cluster")
		s.readyOnce.Do(func() { close(s.ready) })
	}
	<-ctx.Done()
	return nil
}

// trim drops the managed fields, which make up much of a cached object and are not read here.
func trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// hostServers returns the host's resolvers.
func (s *Server) hostServers() []netip.AddrPort {
	servers, changed := s.resolvers.get()
	if changed {
		s.log.Info("upstream resolvers", zap.Stringers("resolvers", servers))
		// With no resolver left, the cached answers are all there is.
		if len(servers) > 0 {
			s.forward.reset()
		}
		s.reportOutside()
	}
	return servers
}

// Note says why names outside of the cluster do not resolve; empty if there are resolvers for them.
func (s *Server) Note() string {
	if s.settings.Load().upstreams != nil || len(s.hostServers()) > 0 {
		return ""
	}
	return "names outside of the cluster do not resolve, as " + s.resolvers.fault() + ": " + Remedy
}

// reportOutside logs once that names outside of the cluster do not resolve, and once that they do
// again. A host without any resolver has no network yet, which is no fault.
func (s *Server) reportOutside() {
	if !s.settingsKnown.Load() {
		return
	}
	note := s.Note()
	s.outsideMu.Lock()
	defer s.outsideMu.Unlock()
	switch was := s.outside; {
	case note == was:
	case note == "":
		s.log.Info("there are resolvers for names outside of the cluster again")
	case len(s.resolvers.unusable()) > 0:
		s.log.Warn(note)
	default:
		s.log.Info(note)
	}
	s.outside = note
}
