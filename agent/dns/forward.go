package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// ednsSize is the largest UDP message we accept and send: the size that common networks carry
	// unfragmented.
	ednsSize = 1232
	// tryTimeout bounds one query to one resolver.
	tryTimeout = 1500 * time.Millisecond
	// queryTimeout bounds all tries; libc gives up after five seconds.
	queryTimeout = 4500 * time.Millisecond
	// maxBackoff bounds how long a failing resolver is tried last.
	maxBackoff = 30 * time.Second
	// maxInFlight bounds the queries to resolvers at a time.
	maxInFlight = 256
	// maxWaiting bounds the clients that wait for them, of which any number may want the same name.
	maxWaiting = 4096
)

var (
	// errNoResolver means that no resolver is configured.
	errNoResolver = errors.New("no upstream resolver")
	// errBusy means that maxInFlight is reached.
	errBusy = errors.New("too many queries in flight")
	// errForeignReply means that a reply does not belong to the query.
	errForeignReply = errors.New("reply to another query")
)

// exchanger sends one query to one resolver.
type exchanger func(ctx context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error)

// exchange is the exchanger over the network.
func exchange(ctx context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
	client := wire.Client{Net: network, UDPSize: ednsSize, Timeout: tryTimeout}
	reply, _, err := client.ExchangeContext(ctx, m, server.String())
	return reply, err
}

// forwarder queries resolvers and caches their answers.
type forwarder struct {
	cache    *answerCache
	exchange exchanger
	now      func() time.Time
	requests singleflight.Group
	slots    chan struct{} // one for each query in flight
	waiting  chan struct{} // one for each client that waits
	count    func(what string)

	mu     sync.Mutex // guards health
	health map[netip.AddrPort]resolverHealth
}

// resolverHealth is the state of a resolver that did not answer.
type resolverHealth struct {
	failures int
	until    time.Time // before this, other resolvers are tried first
}

func newForwarder(cacheBytes int, exchange exchanger, now func() time.Time, count func(string)) *forwarder {
	return &forwarder{
		cache:    newAnswerCache(cacheBytes, now),
		exchange: exchange,
		now:      now,
		slots:    make(chan struct{}, maxInFlight),
		waiting:  make(chan struct{}, maxWaiting),
		count:    count,
		health:   make(map[netip.AddrPort]resolverHealth),
	}
}

// resolve answers a question from the cache or from the servers. The caller may change the answer.
func (f *forwarder) resolve(ctx context.Context, q question, servers []netip.AddrPort, dnssec, raw bool) *wire.Msg {
	k := cacheKey{q.name, q.qtype, dnssec, raw}
	if m := f.cache.get(k, false); m != nil {
		f.count("cache_hit")
		return m
	}
	f.count("cache_miss")
	m, err := f.share(ctx, k, servers)
	if err == nil && m.Rcode != wire.RcodeServerFailure {
		return m.Copy()
	}
	if m := f.cache.get(k, true); m != nil && m.Rcode != wire.RcodeServerFailure {
		f.count("cache_stale")
		return m
	}
	f.count("upstream_failure")
	failed := new(wire.Msg)
	failed.Rcode = wire.RcodeServerFailure
	if err != nil && !errors.Is(err, errBusy) && !errors.Is(err, errNoResolver) {
		f.cache.put(k, withQuestion(failed, k))
	}
	return failed
}

// share sends one query to the resolvers for all clients that want the same at the same time. The
// answer is shared, too.
func (f *forwarder) share(ctx context.Context, k cacheKey, servers []netip.AddrPort) (*wire.Msg, error) {
	select {
	case f.waiting <- struct{}{}:
		defer func() { <-f.waiting }()
	default:
		return nil, errBusy
	}
	result, err, _ := f.requests.Do(requestKey(k), func() (any, error) {
		// The same query may have been answered since the caller's lookup.
		if m := f.cache.get(k, false); m != nil {
			return m, nil
		}
		limited, cancel := context.WithTimeout(ctx, queryTimeout)
		defer cancel()
		m, err := f.query(limited, k, servers)
		if err == nil {
			f.cache.put(k, m)
		}
		return m, err
	})
	m, ok := result.(*wire.Msg)
	if err == nil && (!ok || m == nil) {
		err = errForeignReply
	}
	return m, err
}

func requestKey(k cacheKey) string {
	var b strings.Builder
	b.WriteString(k.name)
	b.WriteByte(' ')
	b.WriteString(wire.Type(k.qtype).String())
	if k.dnssec {
		b.WriteString(" do")
	}
	if k.raw {
		b.WriteString(" cd")
	}
	return b.String()
}

func withQuestion(m *wire.Msg, k cacheKey) *wire.Msg {
	m.Question = []wire.Question{{Name: k.name, Qtype: k.qtype, Qclass: wire.ClassINET}}
	return m
}

// query tries one server after the other until one knows the answer.
func (f *forwarder) query(ctx context.Context, k cacheKey, servers []netip.AddrPort) (*wire.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoResolver
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	var last error
	var failed *wire.Msg
	// Twice around: a packet may be lost.
	for range 2 {
		for _, server := range f.order(servers) {
			if ctx.Err() != nil {
				return failed, errors.Join(last, ctx.Err())
			}
			reply, err := f.queryOne(ctx, k, server)
			if err != nil {
				f.failed(server)
				last = err
				continue
			}
			f.answered(server)
			if reply.Rcode == wire.RcodeSuccess || reply.Rcode == wire.RcodeNameError {
				return reply, nil
			}
			// This one cannot answer; another one may.
			failed = reply
		}
		if failed != nil {
			failed.Rcode = wire.RcodeServerFailure
			return failed, nil
		}
		if unreachable(last) {
			break
		}
	}
	return nil, last
}

// queryOne queries a server over UDP, and again over TCP if the answer does not fit.
func (f *forwarder) queryOne(ctx context.Context, k cacheKey, server netip.AddrPort) (*wire.Msg, error) {
	m := withQuestion(new(wire.Msg), k)
	m.RecursionDesired, m.CheckingDisabled = true, k.raw
	m.SetEdns0(ednsSize, k.dnssec)
	var reply *wire.Msg
	for _, network := range []string{"udp", "tcp"} {
		m.Id = wire.Id()
		f.count("upstream_query")
		var err error
		if reply, err = f.exchange(ctx, network, server, m); err != nil {
			return nil, err
		}
		if !answers(m, reply) {
			return nil, errForeignReply
		}
		if !reply.Truncated {
			break
		}
	}
	reply.Extra = slices.DeleteFunc(reply.Extra, func(rr wire.RR) bool { return rr.Header().Rrtype == wire.TypeOPT })
	return reply, nil
}

// answers reports whether a reply belongs to a query.
func answers(m, reply *wire.Msg) bool {
	if reply == nil || !reply.Response || reply.Id != m.Id {
		return false
	}
	if len(reply.Question) == 0 {
		// Some servers leave the question out when they refuse.
		return reply.Rcode != wire.RcodeSuccess
	}
	q := reply.Question[0]
	return len(reply.Question) == 1 && strings.EqualFold(q.Name, m.Question[0].Name) && q.Qtype == m.Question[0].Qtype
}

// order sorts servers that failed recently to the end.
func (f *forwarder) order(servers []netip.AddrPort) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	out := slices.Clone(servers)
	slices.SortStableFunc(out, func(a, b netip.AddrPort) int {
		return boolInt(now.Before(f.health[a].until)) - boolInt(now.Before(f.health[b].until))
	})
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (f *forwarder) failed(server netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.health[server]
	h.failures++
	h.until = f.now().Add(min(time.Second<<min(h.failures, 6), maxBackoff))
	f.health[server] = h
}

func (f *forwarder) answered(server netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.health, server)
}

// unreachable reports whether an error came at once and would come again: there is no network.
func unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// reset drops the answers and the health of servers that are replaced.
func (f *forwarder) reset() {
	f.cache.clear()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health = make(map[netip.AddrPort]resolverHealth)
}
