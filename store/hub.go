package store

import (
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// hub delivers new changes to the watchers that keep up. It holds only those: a watcher that fell
// behind reads the file instead.
type hub struct {
	metrics   *metrics
	maxEvents int // queued for one watcher
	maxBytes  int

	mu sync.Mutex
	// rev is the newest revision delivered.
	rev int64
	// Watchers are indexed by what they watch: one key, a prefix, or any other range. Most watch a
	// prefix, and finding those costs one lookup for each prefix length in use.
	exact    map[string]map[*watcher]struct{}
	prefixes map[string]map[*watcher]struct{}
	lengths  map[int]int // length of prefix -> number of different prefixes
	sizes    []int       // the keys of lengths, in order
	ranges   map[*watcher]struct{}
	streams  map[*watchStream]struct{}
	touched  []*watcher // scratch
}

func newHub(o Options, m *metrics, rev int64) *hub {
	return &hub{
		metrics:   m,
		maxEvents: o.WatchBufferEvents,
		maxBytes:  o.WatchBufferBytes,
		rev:       rev,
		exact:     map[string]map[*watcher]struct{}{},
		prefixes:  map[string]map[*watcher]struct{}{},
		lengths:   map[int]int{},
		ranges:    map[*watcher]struct{}{},
		streams:   map[*watchStream]struct{}{},
	}
}

// prefixEnd is the end of the range of all keys that start with p, empty when there is no bound.
func prefixEnd(p []byte) []byte {
	end := slices.Clone(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{}
}

func (w *watcher) isPrefix() bool {
	return !w.keys.single() && len(w.keys.end) > 0 && slices.Equal(w.keys.end, prefixEnd(w.keys.key))
}

// attach needs h.mu.
func (h *hub) attach(w *watcher) {
	key := string(w.keys.key)
	switch {
	case w.keys.single():
		put(h.exact, key, w)
	case w.isPrefix():
		if put(h.prefixes, key, w) {
			if h.lengths[len(key)]++; h.lengths[len(key)] == 1 {
				h.sizes = append(h.sizes, len(key))
				slices.Sort(h.sizes)
			}
		}
	default:
		h.ranges[w] = struct{}{}
	}
	w.attached = true
}

// detach needs h.mu.
func (h *hub) detach(w *watcher) {
	if !w.attached {
		return
	}
	w.attached = false
	key := string(w.keys.key)
	switch {
	case w.keys.single():
		drop(h.exact, key, w)
	case w.isPrefix():
		if drop(h.prefixes, key, w) {
			if h.lengths[len(key)]--; h.lengths[len(key)] == 0 {
				delete(h.lengths, len(key))
				h.sizes = slices.DeleteFunc(h.sizes, func(n int) bool { return n == len(key) })
			}
		}
	default:
		delete(h.ranges, w)
	}
}

// put reports whether key is new.
func put(m map[string]map[*watcher]struct{}, key string, w *watcher) bool {
	set, ok := m[key]
	if !ok {
		set = map[*watcher]struct{}{}
		m[key] = set
	}
	set[w] = struct{}{}
	return !ok
}

// drop reports whether key is gone.
func drop(m map[string]map[*watcher]struct{}, key string, w *watcher) bool {
	delete(m[key], w)
	if len(m[key]) == 0 {
		delete(m, key)
		return true
	}
	return false
}

// publish delivers the changes up to rev. A watcher gets its share of one call at once, so that it
// never sees half a revision.
func (h *hub) publish(changes []change, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rev = rev
	for i := range changes {
		c := &changes[i]
		key := string(c.event.Kv.Key)
		for w := range h.exact[key] {
			h.offer(w, c)
		}
		for _, n := range h.sizes {
			if n > len(key) {
				break
			}
			for w := range h.prefixes[key[:n]] {
				h.offer(w, c)
			}
		}
		for w := range h.ranges {
			if w.keys.contains(c.event.Kv.Key) {
				h.offer(w, c)
			}
		}
	}
	for _, w := range h.touched {
		h.flush(w, rev)
	}
	clear(h.touched)
	h.touched = h.touched[:0]
	h.metrics.events.Add(float64(len(changes)))
}

func (h *hub) offer(w *watcher, c *change) {
	if c.event.Kv.ModRevision < w.from || !w.wants(c.event.Type) {
		return
	}
	if len(w.fresh) == 0 {
		h.touched = append(h.touched, w)
	}
	ev := c.event
	if w.prevKV && c.prev != nil {
		ev = &mvccpb.Event{Type: ev.Type, Kv: ev.Kv, PrevKv: c.prev}
	}
	w.fresh = append(w.fresh, ev)
}

// flush moves the changes that publish collected for w to its stream. If too many are queued there,
// w has fallen behind and reads the file from the first of them.
func (h *hub) flush(w *watcher, rev int64) {
	size := 0
	for _, ev := range w.fresh {
		size += len(ev.Kv.Value) + len(ev.Kv.Key)
		if ev.PrevKv != nil {
			size += len(ev.PrevKv.Value)
		}
	}
	st := w.stream
	st.mu.Lock()
	if len(w.queue)+len(w.fresh) > h.maxEvents || w.queued+size > h.maxBytes {
		first := w.fresh[0]
		if len(w.queue) > 0 {
			first = w.queue[0]
		}
		h.detach(w)
		w.next, w.queue, w.queued = first.Kv.ModRevision, nil, 0
		h.metrics.slowWatchers.Inc()
	} else {
		w.queue = append(w.queue, w.fresh...)
		w.queued += size
		w.rev = rev
	}
	st.markReady(w)
	st.mu.Unlock()
	clear(w.fresh)
	w.fresh = w.fresh[:0]
}

// close ends all streams.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for st := range h.streams {
		st.signal()
	}
}

// streamKey groups in-process watches into streams by the metadata of their context, as etcd's
// client does.
func streamKey(md map[string][]string) string {
	keys := make([]string, 0, len(md))
	for k, v := range md {
		keys = append(keys, k+"="+strings.Join(v, ","))
	}
	slices.Sort(keys)
	return strings.Join(keys, ";")
}
