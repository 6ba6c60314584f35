package join

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mote-dev/mote/internal/retry"
)

// Limits of wrong secrets. They protect passwords, which may be weak, and the log. A bootstrap
// token has 83 bits and a node's secret 256, more than anybody can try.
const (
	failuresOfAddress = 10
	addressRecovers   = 6 * time.Second
	failuresOfAll     = 100
	allRecover        = time.Second
	// Past the limits, guessable secrets are checked one per interval, of an address and of all.
	// Whoever would have to wait longer than lateWait is refused: the line is short, so that it
	// holds few of the requests an address may have open.
	lateInterval, lateIntervalOfAll = time.Second, 250 * time.Millisecond
	lateWait                        = 8 * time.Second
	// maxAddresses bounds the table of addresses. While it is full, further addresses share one
	// entry.
	maxAddresses = 4096
	// sweepInterval is how often a full table is searched for addresses to forget.
	sweepInterval = time.Second
	// Requests in progress, in total and per address; each holds a body of up to
	// joinapi.MaxRequestBytes.
	maxOpen, maxOpenOfAddress = 256, 64
)

// limiter bounds the requests and guesses of strangers.
type limiter struct {
	now func() time.Time
	// turn has room for one: secrets are compared one at a time, so that concurrent guesses cannot
	// outrun the count of failures, and take one core at most.
	turn chan struct{}

	mu        sync.Mutex // guards what follows
	all, late *rate.Limiter
	addresses map[netip.Prefix]*guest
	swept     time.Time // when addresses was last searched for entries to forget
	open      int
}

// guest is the state of an address.
type guest struct {
	failures, late *rate.Limiter
	open           int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{
		now:       now,
		turn:      make(chan struct{}, 1),
		addresses: map[netip.Prefix]*guest{},
		all:       rate.NewLimiter(rate.Every(allRecover), failuresOfAll),
		late:      rate.NewLimiter(rate.Every(lateIntervalOfAll), 1),
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
	if len(l.addresses) >= maxAddresses && l.now().Sub(l.swept) >= sweepInterval {
		l.swept = l.now()
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
	g := &guest{
		failures: rate.NewLimiter(rate.Every(addressRecovers), failuresOfAddress),
		late:     rate.NewLimiter(rate.Every(lateInterval), 1),
	}
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

// attempt runs right, which checks a secret that nobody can guess. It does so after any number of
// wrong ones: behind a NAT one machine with an old token would lock out all others. tooMany means
// that the secret is wrong, as were too many before it.
func (l *limiter) attempt(ctx context.Context, from netip.Prefix, right func() (bool, error)) (ok, tooMany bool,
	err error) {
	leave, err := l.takeTurn(ctx)
	if err != nil {
		return false, false, err
	}
	defer leave()
	return l.check(from, right)
}

// attemptGuessable is attempt for a secret that can be guessed. After too many wrong ones it stands
// in line, and the secret is not checked at all if that is long.
func (l *limiter) attemptGuessable(ctx context.Context, from netip.Prefix, right func() (bool, error)) (ok,
	tooMany bool, err error) {
	leave, err := l.takeTurn(ctx)
	if err != nil {
		return false, false, err
	}
	defer func() { leave() }()
	if l.spent(from) {
		leave()
		leave = func() {}
		wait, admitted := l.queue(from)
		if !admitted {
			return false, true, nil
		}
		if err := retry.Sleep(ctx, wait); err != nil {
			return false, false, err
		}
		if leave, err = l.takeTurn(ctx); err != nil {
			leave = func() {}
			return false, false, err
		}
	}
	return l.check(from, right)
}

// takeTurn waits until no other secret is being compared. The caller calls leave.
func (l *limiter) takeTurn(ctx context.Context) (leave func(), err error) {
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// check runs right and counts a failure. The caller has the turn.
func (l *limiter) check(from netip.Prefix, right func() (bool, error)) (ok, tooMany bool, err error) {
	ok, err = right()
	if err != nil || ok {
		return ok, false, err
	}
	tooMany = l.spent(from)
	l.fail(from)
	return false, tooMany, nil
}

// queue says how long a guessable secret has to wait past the limits. It reports false if that is
// too long.
func (l *limiter) queue(from netip.Prefix) (time.Duration, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	own, all := l.guest(from).late.ReserveN(now, 1), l.late.ReserveN(now, 1)
	wait := max(own.DelayFrom(now), all.DelayFrom(now))
	if wait > lateWait {
		own.CancelAt(now)
		all.CancelAt(now)
		return 0, false
	}
	return wait, true
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
	if l.all.AllowN(now, 1) {
		l.guest(from).failures.AllowN(now, 1)
	}
}
