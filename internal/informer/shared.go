package informer

import (
	"context"
	"errors"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Shared is an informer factory that several parts of a process use and one owner runs. client-go
// gives an informer the context of whichever user happens to start it first, so that user's end
// would stop it for everyone else.
//
// The owner calls Run. Users get the factory as an informers.SharedInformerFactory and use it as
// upstream's code does: request informers, add handlers, call Start, wait for sync. Their Start
// only asks the owner to start what was requested since the last call, its stop channel has no
// effect, and their Shutdown does nothing. A user that ends removes its own handlers, or gets the
// factory through a Gate, which does so when it is closed.
type Shared struct {
	informers.SharedInformerFactory

	running chan struct{} // closed once Run may start informers

	mu        sync.Mutex
	requested bool   // a user called Start
	start     func() // starts what is not started yet; nil while Run does not run
	ran       bool
}

var _ informers.SharedInformerFactory = (*Shared)(nil)

// NewShared returns the owner's side of factory, which must not be used directly any more.
func NewShared(factory informers.SharedInformerFactory) *Shared {
	return &Shared{SharedInformerFactory: factory, running: make(chan struct{})}
}

// Run runs all informers that are requested and started, now or later, until ctx ends and all of
// them have stopped. It can be called once.
func (s *Shared) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.ran {
		s.mu.Unlock()
		return errors.New("run shared informers: they ran before, and cannot be started again")
	}
	s.ran = true
	s.start = func() { s.SharedInformerFactory.StartWithContext(ctx) }
	if s.requested {
		s.start()
	}
	s.mu.Unlock()
	close(s.running)

	<-ctx.Done()
	s.mu.Lock()
	s.start = nil
	s.mu.Unlock()
	s.SharedInformerFactory.Shutdown()
	return nil
}

// Ensure starts all informers requested so far: at once while Run runs, or when it begins. After
// Run has ended it does nothing.
func (s *Shared) Ensure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requested = true
	if s.start != nil {
		s.start()
	}
}

// Start implements informers.SharedInformerFactory: it is Ensure.
func (s *Shared) Start(<-chan struct{}) { s.Ensure() }

// StartWithContext implements informers.SharedInformerFactory: it is Ensure.
func (s *Shared) StartWithContext(context.Context) { s.Ensure() }

// Shutdown implements informers.SharedInformerFactory. It does nothing: Run's caller ends the
// informers and waits for them.
func (s *Shared) Shutdown() {}

// WaitForCacheSync implements informers.SharedInformerFactory.
func (s *Shared) WaitForCacheSync(stop <-chan struct{}) map[reflect.Type]bool {
	return s.WaitForCacheSyncWithContext(wait.ContextForChannel(stop)).Synced
}

// WaitForCacheSyncWithContext implements informers.SharedInformerFactory. Informers that wait for
// Run to begin count as not synced; upstream's factory would leave them out, as not started.
func (s *Shared) WaitForCacheSyncWithContext(ctx context.Context) cache.SyncResult {
	s.mu.Lock()
	requested := s.requested
	s.mu.Unlock()
	if requested {
		select {
		case <-s.running:
		default:
			select {
			case <-s.running:
			case <-ctx.Done():
				return cache.SyncResult{Err: context.Cause(ctx),
					Synced: map[reflect.Type]bool{reflect.TypeFor[*Shared](): false}}
			}
		}
	}
	return s.SharedInformerFactory.WaitForCacheSyncWithContext(ctx)
}
