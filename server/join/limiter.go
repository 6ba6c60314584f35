package join

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of wrong secrets. A bootstrap token has 83 bits, so these protect passwords, and the log.
const (
	failuresOfAddress = 10
	addressRecovers   = 6 * time.Second
	failuresOfAll     = 100
	allRecover        = time.Second
	// maxAddresses bounds the table of addresses. While it is full, further addresses share one
	// entry.
	maxAddresses = 4096
	// Requests in progress, in total and per address; each holds a body of up to
	// joinapi.MaxRequestBytes.
	maxOpen, maxOpenOfAddress = 256, 64
)

// limiter bounds the requests and guesses of strangers.
type limiter struct {
	now func() time.Time
	// turn has room for one: secrets are compared one at a time, so that concurrent guesses cannot
	// outrun the count of failures.
	turn chan struct{}

	mu        sync.Mutex // guards what follows
	all       *rate.Limiter
	addresses map[netip.Prefix]*guest
	open      int
}

// guest is the state of an address.
type guest struct {
	failures *rate.Limiter
	open     int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{
		now:       now,
		turn:      make(chan struct{}, 1),
		addresses: map[netip.Prefix]*guest{},
		all:       rate.NewLimiter(rate.Every(allRecover), failuresOfAll),
	}
}

// origin maps a client to what counts as one address. For IPv6 that is a /64, as a host may use all
// of it.
func origin(remote string) netip.Prefix {
	host, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	address, bits := host.Addr().Unmap().WithZone(""), 32
	if address.Is6() {
		bits = 64
	}
	// The number of bits is right for either family.
	prefix, _ := address.Prefix(bits)
	return prefix
}

// guest returns the state of from. The caller holds mu.
func (l *limiter) guest(from netip.Prefix) *guest {
	if g, ok := l.addresses[from]; ok {
		return g
	}
	if len(l.addresses) >= maxAddresses {
		for a, g := range l.addresses {
			if g.open == 0 && g.failures.TokensAt(l.now()) >= failuresOfAddress {
				delete(l.addresses, a)
			}
		}
	}
	if len(l.addresses) >= maxAddresses {
		from = netip.Prefix{}
		if g, ok := l.addresses[from]; ok {
			return g
		}
	}
	g := &guest{failures: rate.NewLimiter(rate.Every(addressRecovers), failuresOfAddress)}
	l.addresses[from] = g
	return g
}

// enter admits a request unless too many are open. The caller calls leave when the request is done.
func (l *limiter) enter(from netip.Prefix) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.guest(from)
	if l.open >= maxOpen || g.open >= maxOpenOfAddress {
		return nil, false
	}
	l.open++
	g.open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
		g.open--
	}, true
}

// attempt runs right, which checks a secret, unless there were too many wrong ones: then the secret
// is not checked at all.
func (l *limiter) attempt(ctx context.Context, from netip.Prefix, right func() (bool, error)) (ok, tooMany bool,
	err error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return false, false, ctx.Err()
	}
	if l.spent(from) {
		return false, true, nil
	}
	ok, err = right()
	if err == nil && !ok {
		l.fail(from)
	}
	return ok, false, err
}

func (l *limiter) spent(from netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	return l.all.TokensAt(now) < 1 || l.guest(from).failures.TokensAt(now) < 1
}

func (l *limiter) fail(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.all.AllowN(now, 1)
	l.guest(from).failures.AllowN(now, 1)
}
