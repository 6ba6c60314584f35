package wallclock

import (
	"context"
	"time"
)

const (
	// every is the time between two looks at the clock.
	every = 10 * time.Second
	// drift is how far wall clock and monotonic clock may diverge between two looks without either
	// having been set: the kernel slews the wall clock by far less.
	drift = time.Second
)

// Floor is the earliest time this program accepts as the present. A clock before it was never set:
// boards without a battery boot in 1970.
var Floor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Watch looks at the clock until ctx ends and calls look each time. set is how far the clock was
// set since the last look: negative if it was set back, 0 if it only ran on. Watch returns the
// first error of look, and nil when ctx ends.
func Watch(ctx context.Context, look func(now time.Time, set time.Duration) error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := time.Now()
		// Round strips the monotonic reading, which Sub would use.
		if err := look(now, jump(now.Round(0).Sub(last.Round(0)), now.Sub(last))); err != nil {
			return err
		}
		last = now
	}
}

// jump returns how far the wall clock was set, from the time that passed on it and the time that
// really passed.
func jump(wall, real time.Duration) time.Duration {
	if set := wall - real; set.Abs() > drift {
		return set
	}
	return 0
}
