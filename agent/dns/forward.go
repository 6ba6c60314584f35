package dns

import (
	"context"
	"errors"
	"fmt"
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
	// ednsKnown is how long mote remembers whether a resolver understands EDNS.
	ednsKnown = 15 * time.Minute
	// refusedTTL is how long a name counts as one without addresses of a family, after resolvers
	// refused to look for them.
	refusedTTL = 30 * time.Second
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
	// errNoTCP means that a resolver answered over UDP, not wholly, and did not over TCP.
	errNoTCP = errors.New("incomplete reply over UDP and none over TCP")
)

// forwarder queries resolvers and caches their answers.
type forwarder struct {
	cache    *answerCache
	exchange exchanger
	now      func() time.Time
	requests singleflight.Group
	slots    chan struct{} // one for each query in flight
	waiting  chan struct{} // one for each client that waits
	count    func(what string)

	mu     sync.Mutex // guards the fields below
	health map[netip.AddrPort]resolverHealth
	edns   map[netip.AddrPort]ednsSupport
}

// ednsSupport is what a resolver's replies showed, valid for a while: resolvers are replaced and
// firewalls change.
type ednsSupport struct {
	supported bool
	until     time.Time
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
		edns:     make(map[netip.AddrPort]ednsSupport),
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
		if err != nil {
			return m, err
		}
		switch {
		case known(m.Rcode):
			f.cache.put(k, m)
		case refused(m.Rcode) && f.otherFamily(limited, k, servers):
			m = withQuestion(new(wire.Msg), k)
			m.Response = true
			f.cache.putFor(k, m, refusedTTL)
		default:
			m.Rcode = wire.RcodeServerFailure
			f.cache.put(k, m)
		}
		return m, nil
	})
	m, ok := result.(*wire.Msg)
	if err == nil && (!ok || m == nil) {
		err = errForeignReply
	}
	return m, err
}

// known reports whether a response code says something about the name.
func known(rcode int) bool { return rcode == wire.RcodeSuccess || rcode == wire.RcodeNameError }

// refused reports whether a response code says that a resolver does not process such a query.
func refused(rcode int) bool {
	return rcode == wire.RcodeRefused || rcode == wire.RcodeNotImplemented || rcode == wire.RcodeFormatError
}

// otherFamily reports whether a name has addresses of the other family than k asks for. Some
// resolvers refuse queries for AAAA records alone (RFC 4074). Such a name has no addresses of that
// family, as glibc sees it; musl fails the whole lookup when one of its two queries fails.
func (f *forwarder) otherFamily(ctx context.Context, k cacheKey, servers []netip.AddrPort) bool {
	switch k.qtype {
	case wire.TypeA:
		k.qtype = wire.TypeAAAA
	case wire.TypeAAAA:
		k.qtype = wire.TypeA
	default:
		return false
	}
	m := f.cache.get(k, false)
	if m == nil {
		var err error
		if m, err = f.query(ctx, k, servers); err != nil || !known(m.Rcode) {
			return false
		}
		f.cache.put(k, m)
	}
	return slices.ContainsFunc(m.Answer, func(rr wire.RR) bool { return rr.Header().Rrtype == k.qtype })
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
	for _, again := range []bool{false, true} {
		for _, server := range f.order(servers) {
			if ctx.Err() != nil {
				return failed, errors.Join(last, ctx.Err())
			}
			reply, err := f.queryOne(ctx, k, server, again)
			if err != nil {
				if !errors.Is(err, errNoTCP) {
					f.failed(server)
				}
				last = err
				continue
			}
			f.answered(server)
			if known(reply.Rcode) && !lame(reply) {
				return reply, nil
			}
			// This one cannot answer; another one may.
			failed = reply
		}
		if failed != nil {
			return failed, nil
		}
		if unreachable(last) {
			break
		}
	}
	return nil, last
}

// lame reports whether a reply comes from a server that knows nothing about the name and does not
// look for it. Its empty answer counts only if no other server has a better one.
func lame(reply *wire.Msg) bool {
	return reply.Rcode == wire.RcodeSuccess && len(reply.Answer) == 0 && !reply.Authoritative &&
		!reply.RecursionAvailable
}

// queryOne queries a server, without EDNS if it does not support that. again says that it did not
// answer the same query before: it may be one that drops queries with EDNS.
func (f *forwarder) queryOne(ctx context.Context, k cacheKey, server netip.AddrPort, again bool) (*wire.Msg, error) {
	support := f.ednsSupport(server)
	edns := support == nil && !again || support != nil && support.supported
	reply, err := f.queryWhole(ctx, k, server, edns)
	if err == nil && edns && refusesEDNS(reply, support != nil) {
		if plain, plainErr := f.queryWhole(ctx, k, server, false); plainErr == nil {
			reply, edns = plain, false
		}
	}
	if err != nil {
		return nil, err
	}
	opt := reply.IsEdns0() != nil
	if edns && opt || !edns && known(reply.Rcode) {
		f.setEDNSSupport(server, opt)
	}
	reply.Extra = slices.DeleteFunc(reply.Extra, func(rr wire.RR) bool { return rr.Header().Rrtype == wire.TypeOPT })
	return reply, nil
}

// refusesEDNS reports whether a server may have failed a query for its EDNS record alone. Servers
// that support EDNS put such a record into their replies.
func refusesEDNS(reply *wire.Msg, supported bool) bool {
	switch reply.Rcode {
	case wire.RcodeSuccess, wire.RcodeNameError:
		return false
	case wire.RcodeFormatError, wire.RcodeNotImplemented, wire.RcodeBadVers:
		return true
	default:
		return !supported && reply.IsEdns0() == nil
	}
}

// queryWhole queries a server over UDP, and again over TCP if that reply is not whole or longer
// than it may be.
func (f *forwarder) queryWhole(ctx context.Context, k cacheKey, server netip.AddrPort, edns bool) (*wire.Msg, error) {
	m := withQuestion(new(wire.Msg), k)
	m.RecursionDesired, m.CheckingDisabled = true, k.raw
	if edns {
		m.SetEdns0(ednsSize, k.dnssec)
	}
	reply, err := f.send(ctx, "udp", server, m)
	oversized := errors.Is(err, errOversized)
	switch {
	case err == nil && !reply.Truncated:
		return reply, nil
	case err != nil && !oversized && !errors.Is(err, errMalformed):
		return nil, err
	}
	overTCP, tcpErr := f.send(ctx, "tcp", server, m)
	switch {
	case tcpErr == nil:
		return overTCP, nil
	case oversized:
		return reply, nil
	default:
		return nil, fmt.Errorf("%w: %w", errNoTCP, errors.Join(err, tcpErr))
	}
}

// send sends m to a server under a new ID, and checks that the reply belongs to it.
func (f *forwarder) send(ctx context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
	m.Id = wire.Id()
	f.count("upstream_query")
	reply, err := f.exchange(ctx, network, server, m)
	if (err == nil || errors.Is(err, errOversized)) && !answers(m, reply) {
		return nil, errForeignReply
	}
	return reply, err
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

// ednsSupport returns what is known about a server; nil means nothing is.
func (f *forwarder) ednsSupport(server netip.AddrPort) *ednsSupport {
	f.mu.Lock()
	defer f.mu.Unlock()
	if support, ok := f.edns[server]; ok && f.now().Before(support.until) {
		return &support
	}
	return nil
}

func (f *forwarder) setEDNSSupport(server netip.AddrPort, supported bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.edns[server] = ednsSupport{supported: supported, until: f.now().Add(ednsKnown)}
}

// unreachable reports whether an error came at once and would come again: there is no network.
func unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// reset drops the answers, the health and the abilities of servers that are replaced.
func (f *forwarder) reset() {
	f.cache.clear()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health = make(map[netip.AddrPort]resolverHealth)
	f.edns = make(map[netip.AddrPort]ednsSupport)
}
