package wallclock

import (
	"context"
	"time"
)

const (
	// every is the time between two looks at the clock.
	every = 10 * time.Second
	// drift is what the two clocks may differ in two looks without anybody's
	// having set one: the kernel slews the wall clock by far less.
	drift = time.Second
)

// Floor is the earliest present this program believes in. A clock before it was
// never set: boards without a battery start in 1970.
var Floor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// Watch looks at the clock until ctx ends and calls look each time. set is how
// far the clock was set since the last look: back if it is negative, and 0 if it
// only went on. Watch returns the first error of look, and nil when ctx ends.
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
		// Round drops the reading of the monotonic clock, which Sub would go by.
		if err := look(now, jump(now.Round(0).Sub(last.Round(0)), now.Sub(last))); err != nil {
			return err
		}
		last = now
	}
}

// jump compares what passed on the wall clock with what really passed.
func jump(wall, real time.Duration) time.Duration {
	if set := wall - real; set.Abs() > drift {
		return set
	}
	return 0
}
