package store

import (
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// countCache remembers how many keys large ranges hold, because counting is a scan and every page of a list and every
// object-count metric asks. A nil cache remembers nothing.
type countCache struct {
	mu sync.Mutex
	// live holds counts at revision rev, kept right as keys come and go.
	live map[string]*liveCount
	rev  int64
	// pinned holds counts at one revision, for the pages of a list.
	pinned map[pinnedSpan]int64
}

type liveCount struct {
	keys span
	n    int64
}

type pinnedSpan struct {
	key, end string
	open     bool
	rev      int64
}

const (
	countWorthKeeping = 512 // counting fewer keys than this costs less than remembering
	maxLiveCounts     = 64
	maxPinnedCounts   = 256
)

func newCountCache() *countCache {
	return &countCache{live: map[string]*liveCount{}, pinned: map[pinnedSpan]int64{}}
}

func (r span) cacheKey() string { return string(r.key) + "\x00\x00" + string(r.end) }

func (r span) pin(rev int64) pinnedSpan {
	return pinnedSpan{string(r.key), string(r.end), r.end != nil, rev}
}

func (cc *countCache) lookup(r span, rev int64) (int64, bool) {
	if cc == nil {
		return 0, false
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if n, ok := cc.pinned[r.pin(rev)]; ok {
		return n, true
	}
	if l, ok := cc.live[r.cacheKey()]; ok && rev == cc.rev {
		return l.n, true
	}
	return 0, false
}

func (cc *countCache) store(r span, rev, n int64) {
	if cc == nil || n < countWorthKeeping || r.single() {
		return
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if rev == cc.rev {
		if len(cc.live) >= maxLiveCounts {
			for k := range cc.live { // any one: the map's order is as good as a clock here
				delete(cc.live, k)
				break
			}
		}
		cc.live[r.cacheKey()] = &liveCount{r, n}
		return
	}
	cc.pinLocked(r, rev, n)
}

// pin remembers a count at one revision only, for the next page of a list.
func (cc *countCache) pin(r span, rev, n int64) {
	if cc == nil || n < countWorthKeeping {
		return
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.pinLocked(r, rev, n)
}

func (cc *countCache) pinLocked(r span, rev, n int64) {
	if len(cc.pinned) >= maxPinnedCounts {
		for k := range cc.pinned {
			delete(cc.pinned, k)
			break
		}
	}
	cc.pinned[r.pin(rev)] = n
}

// advance takes the changes that lead to rev.
func (cc *countCache) advance(changes []change, rev int64) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	for i := range changes {
		c := &changes[i]
		d := int64(0)
		switch {
		case c.event.Type == mvccpb.Event_DELETE:
			d = -1
		case c.event.Kv.Version == 1:
			d = 1
		default:
			continue
		}
		for _, l := range cc.live {
			if l.keys.contains(c.event.Kv.Key) {
				l.n += d
			}
		}
	}
	cc.rev = rev
}
