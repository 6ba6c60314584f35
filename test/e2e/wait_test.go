package e2e

import (
	"context"
	"errors"
	"testing"
	"time"
)

// errStop ends a wait at once: what it wraps will not get better.
var errStop = errors.New("will not happen any more")

// eventually calls check until it returns nil; it fails the test when that takes longer than within, with the last reason.
func eventually(t *testing.T, within time.Duration, what string, check func(context.Context) error) {
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
			return
		}
		// A check that was itself cut off says less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if errors.Is(err, errStop) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v (waited %v): %v", what, within, time.Since(begin).Round(time.Millisecond), last)
		case <-tick.C:
		}
	}
}
