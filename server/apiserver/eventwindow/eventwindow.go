package eventwindow

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
)

const (
	// interval is how often the caches are looked at.
	interval = 5 * time.Second
	// looks is how many intervals events stay in a cache at least: upstream keeps those of 75
	// seconds for watchers that come back.
	looks = int(cacher.DefaultEventFreshDuration / interval)
	// worthwhile is how many events must have come since a cache was last emptied. Fewer cost less
	// memory than emptying it is worth.
	worthwhile = 512
	// quiet says when a burst is over: the events of the last looks are at most this part of it.
	// Those few are let go as well.
	quiet = 64
)

// Windows are the caches of one API server.
//
// Upstream's watch cache keeps every event of the last 75 seconds, at most 102,400, each with its
// object decoded: 3 kB for a ConfigMap of 1 KiB. Only new events push out old ones. So after a
// burst a cache that has nothing more to do keeps the whole burst for good: 80 MB after a minute of
// 400 writes a second.
//
// Here a cache whose burst is over gets events that push the old ones out, and none of them
// leaves it: they are about one object that does not exist, under a key that no list and no watch
// can ask for. Then the cache is as small as a new one. Its objects, its watchers and its resource
// version stay as they are. A watcher that comes back with a resource version from before is told
// to list again, as after a compaction.
//
// The other ways were worse. Making the cache list anew ends every watch of the resource. Fewer
// events kept during a burst make clients list again at the worst time.
type Windows struct {
	mu  sync.Mutex
	all map[*window]struct{}
}

// Add returns c changed so that its events are let go after a burst. The function ends that; it is
// called when the cache has been stopped.
func (ws *Windows) Add(c cacher.Config) (cacher.Config, func()) {
	w := &window{Interface: c.Storage, config: c}
	c.Storage, c.KeyFunc, c.GetAttrsFunc = w, w.key, w.attributes
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all == nil {
		ws.all = map[*window]struct{}{}
	}
	ws.all[w] = struct{}{}
	return c, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.all, w)
	}
}

// Run looks at the caches until ctx ends.
func (ws *Windows) Run(ctx context.Context) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			ws.look()
		}
	}
}

func (ws *Windows) look() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.all {
		w.look()
	}
}

// window is the storage below one watch cache, with a view of the events that pass.
type window struct {
	storage.Interface
	config cacher.Config

	// events counts what the cache was given. filler is the object that pushes out the others, or
	// nil.
	events atomic.Int64
	filler atomic.Pointer[filler]

	// seen, recent and held are used by look only: the count at the last look, how many events came
	// between the last looks, and how many since the cache was emptied.
	seen   int64
	recent [looks]int64
	held   int64

	// mu guards what follows: the cache's watch of the storage, whether it has lived to a look, and
	// whether the next one is to empty the cache.
	mu      sync.Mutex
	current watch.Interface
	settled bool
	fill    bool
}

var _ storage.Interface = (*window)(nil)

func (w *window) key(o runtime.Object) (string, error) {
	if f := w.filler.Load(); f != nil && f.object == o {
		return fillerKey, nil
	}
	return w.config.KeyFunc(o)
}

func (w *window) attributes(o runtime.Object) (labels.Set, fields.Set, error) {
	if f := w.filler.Load(); f != nil && f.object == o {
		return nil, nil, nil
	}
	w.events.Add(1)
	return w.config.GetAttrsFunc(o)
}

// look empties the cache if a burst is over.
func (w *window) look() {
	now := w.events.Load()
	copy(w.recent[1:], w.recent[:])
	w.recent[0] = now - w.seen
	w.held += w.recent[0]
	w.seen = now
	var recent int64
	for _, n := range w.recent {
		recent += n
	}
	if w.held < worthwhile || recent*quiet > w.held {
		recent = -1
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	settled := w.settled
	w.settled = w.current != nil
	// Upstream takes a watch that ends within a second for a fault.
	if recent < 0 || !settled {
		return
	}
	// Events from the future make the window longer until their time has come.
	if time.Until(w.youngest()) > w.config.EventsHistoryWindow {
		return
	}
	w.fill, w.held = true, 0
	// The cache asks for another watch from where this one ends.
	w.current.Stop()
	w.current, w.settled = nil, false
}

// youngest is when the last event of the last filler pretends to have come.
func (w *window) youngest() time.Time {
	if f := w.filler.Load(); f != nil {
		return f.youngest
	}
	return time.Time{}
}

// Watch implements storage.Interface. Only the cache calls it.
func (w *window) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fill := w.fill
	w.fill = false
	// A cache that starts anew is empty, and has no resource version for events.
	if version, err := w.Versioner().ParseResourceVersion(opts.ResourceVersion); fill && err == nil &&
		version > 0 && opts.SendInitialEvents == nil {
		f, err := newFiller(w.config, version, w.youngest())
		if err != nil {
			return nil, err
		}
		w.filler.Store(f)
		w.current, w.settled = nil, false
		return f, nil
	}
	next, err := w.Interface.Watch(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	w.current, w.settled = next, false
	return next, nil
}
