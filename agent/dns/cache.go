package dns

import (
	"container/list"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// Limits on how long foreign answers are cached.
const (
	maxTTL         = time.Hour
	maxNegativeTTL = 5 * time.Minute
	// failureTTL is how long a failure is cached, so that clients do not repeat it all at once.
	failureTTL = 2 * time.Second
	// staleFor is how long an expired answer may still be used when no resolver answers.
	staleFor = 24 * time.Hour
	// staleTTL is the TTL of such an answer, in seconds (RFC 8767).
	staleTTL = 30
	// entryOverhead estimates the bytes of an entry beside its message and name.
	entryOverhead = 200
)

// cacheKey identifies an answer.
type cacheKey struct {
	name   string // lower case
	qtype  uint16
	dnssec bool // the client requested DNSSEC records
	raw    bool // the client disabled DNSSEC checking
}

type cacheEntry struct {
	key     cacheKey
	packed  []byte
	stored  time.Time
	expires time.Time
}

func (e *cacheEntry) size() int { return len(e.packed) + len(e.key.name) + entryOverhead }

// answerCache holds packed answers up to a number of bytes, and evicts the least recently used.
type answerCache struct {
	max int
	now func() time.Time
	// resized, unless nil, is called with each change of bytes, and mu held.
	resized func(by int)

	mu      sync.Mutex // guards the fields below
	entries map[cacheKey]*list.Element
	order   *list.List // most recently used first
	bytes   int
}

func newAnswerCache(maxBytes int, now func() time.Time) *answerCache {
	return &answerCache{
		max:     maxBytes,
		now:     now,
		entries: make(map[cacheKey]*list.Element),
		order:   list.New(),
	}
}

// get returns an answer with its TTLs counted down, with stale also one that has expired.
func (c *answerCache) get(k cacheKey, stale bool) *wire.Msg {
	now := c.now()
	c.mu.Lock()
	el, ok := c.entries[k]
	if !ok {
		c.mu.Unlock()
		return nil
	}
	e := el.Value.(*cacheEntry)
	expired := !now.Before(e.expires)
	// A clock that was set back must not keep an answer for years.
	future := now.Before(e.stored)
	if future || now.After(e.expires.Add(staleFor)) {
		c.drop(el)
		c.mu.Unlock()
		return nil
	}
	if expired && !stale {
		c.mu.Unlock()
		return nil
	}
	c.order.MoveToFront(el)
	c.mu.Unlock()

	m := new(wire.Msg)
	if m.Unpack(e.packed) != nil {
		return nil
	}
	age := uint32(now.Sub(e.stored) / time.Second)
	eachRecord(m, func(h *wire.RR_Header) {
		switch {
		case expired:
			h.Ttl = staleTTL
		case h.Ttl > age:
			h.Ttl -= age
		default:
			h.Ttl = 0
		}
	})
	return m
}

// put caches an answer for its own lifetime, if it may be cached.
func (c *answerCache) put(k cacheKey, m *wire.Msg) { c.putFor(k, m, lifetime(m)) }

// putFor caches an answer for as long as keep says.
func (c *answerCache) putFor(k cacheKey, m *wire.Msg, keep time.Duration) {
	if keep <= 0 {
		return
	}
	packed, err := m.Pack()
	if err != nil {
		return
	}
	now := c.now()
	e := &cacheEntry{
		key:     k,
		packed:  packed,
		stored:  now,
		expires: now.Add(keep),
	}
	if e.size() > c.max/4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.entries[k]; ok {
		old := el.Value.(*cacheEntry)
		if m.Rcode == wire.RcodeServerFailure && now.Before(old.expires.Add(staleFor)) &&
			old.packed[3]&0xf != wire.RcodeServerFailure {
			// A failure does not replace an answer that can still be served stale.
			return
		}
		c.drop(el)
	}
	c.entries[k] = c.order.PushFront(e)
	c.resize(e.size())
	for c.bytes > c.max {
		c.drop(c.order.Back())
	}
}

// drop removes an entry; the lock is held.
func (c *answerCache) drop(el *list.Element) {
	e := c.order.Remove(el).(*cacheEntry)
	delete(c.entries, e.key)
	c.resize(-e.size())
}

// resize accounts for bytes that were added; the lock is held.
func (c *answerCache) resize(by int) {
	c.bytes += by
	if c.resized != nil {
		c.resized(by)
	}
}

// size returns the number of entries and their bytes.
func (c *answerCache) size() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.bytes
}

// clear drops everything: other resolvers may give names other meanings.
func (c *answerCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = make(map[cacheKey]*list.Element)
	c.order.Init()
	c.resize(-c.bytes)
}

// lifetime is how long an answer may be cached: the least TTL of its records, or what the SOA
// record of a denial permits.
func lifetime(m *wire.Msg) time.Duration {
	switch {
	case m.Truncated:
		return 0
	case m.Rcode == wire.RcodeServerFailure:
		return failureTTL
	case m.Rcode == wire.RcodeSuccess && len(m.Answer) > 0:
		least := uint32(maxTTL / time.Second)
		eachRecord(m, func(h *wire.RR_Header) { least = min(least, h.Ttl) })
		return time.Duration(least) * time.Second
	case m.Rcode == wire.RcodeSuccess, m.Rcode == wire.RcodeNameError:
		for _, rr := range m.Ns {
			if soa, ok := rr.(*wire.SOA); ok {
				return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNegativeTTL)
			}
		}
	}
	return 0
}

// eachRecord calls f with the header of every record that has a TTL.
func eachRecord(m *wire.Msg, f func(*wire.RR_Header)) {
	for _, section := range [][]wire.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != wire.TypeOPT {
				f(rr.Header())
			}
		}
	}
}
