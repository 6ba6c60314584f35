package harness

import (
	"context"
	"errors"
	"testing"
	"time"
)

// ErrStop ends a wait at once: what it wraps will not get better.
var ErrStop = errors.New("will not happen any more")

// Eventually calls check until it returns nil, and returns how long that took. It fails the test
// when that takes longer than within, with the last reason, and at once when the reason is an
// ErrStop.
func Eventually(t *testing.T, within time.Duration, what string, check func(context.Context) error) time.Duration {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return time.Since(begin)
		}
		// A check that was itself cut off says less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if errors.Is(err, ErrStop) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v (waited %v): %v", what, within, time.Since(begin).Round(time.Millisecond), last)
		case <-tick.C:
		}
	}
}

// Always calls check every second until the time has come, and fails the test for each time it does
// not hold.
func Always(t *testing.T, until time.Time, what string, check func(context.Context) error) {
	t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for rounds := 1; ; rounds++ {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := check(ctx); err != nil {
			t.Errorf("%s: %v before the end, round %d: %v", what, time.Until(until).Round(time.Second), rounds, err)
		}
		cancel()
		if time.Now().After(until) {
			t.Logf("%s: held in %d rounds", what, rounds)
			return
		}
		<-tick.C
	}
}

// Promised holds a time to what users are told. A machine that has other work can need longer at
// any moment, so that a miss is only logged, and twice the time is a failure; the figures are made
// by the benchmarks.
func Promised(t *testing.T, what string, took, within time.Duration) {
	t.Helper()
	switch {
	case took > 2*within:
		t.Errorf("%s after %v, want %v at most", what, took, within)
	case took > within:
		t.Logf("%s after %v, which is more than the %v promised: is this machine busy?", what,
			took.Round(time.Millisecond), within)
	default:
		t.Logf("%s after %v", what, took.Round(time.Millisecond))
	}
}
