package reconcile

import (
	"context"
	"time"

	"github.com/mote-dev/mote/internal/retry"
)

// Config is what a [Loop] is made of.
type Config struct {
	// Debounce is how long triggers are gathered before a pass: they come in bursts.
	Debounce time.Duration
	// Interval is the time between passes while nothing triggers one.
	Interval time.Duration
	// FirstRetry and LastRetry bound the pauses after failed passes. They double in between.
	FirstRetry, LastRetry time.Duration
	// Pass brings the state to what is wanted, once. full is set for the first pass, at intervals
	// and after a failure: triggers may have been missed, so everything has to be looked at.
	Pass func(ctx context.Context, full bool) error
	// Failed reports a failure that differs from the one reported before. The next pass is in
	// pause.
	Failed func(err error, pause time.Duration)
	// Recovered reports the first pass that succeeds after a reported failure.
	Recovered func()
}

// Loop runs passes. Make it with [New].
type Loop struct {
	cfg  Config
	wake chan struct{} // has room for one: a pass is wanted
}

// New returns a loop that does nothing before [Loop.Run]. Triggers are kept until then.
func New(c Config) *Loop { return &Loop{cfg: c, wake: make(chan struct{}, 1)} }

// Trigger asks for a pass. It never blocks.
func (l *Loop) Trigger() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run runs a pass at once and then as triggered until ctx ends. It returns nil.
func (l *Loop) Run(ctx context.Context) error {
	backoff := retry.Backoff{First: l.cfg.FirstRetry, Last: l.cfg.LastRetry}
	var failures retry.Failures
	full := true
	for {
		// The pass sees everything triggered so far.
		select {
		case <-l.wake:
		default:
		}
		wait, wake := l.cfg.Interval, l.wake
		switch err := l.cfg.Pass(ctx, full); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			// A pass that fails halfway often causes the very events that trigger the next one, so
			// triggers do not cut the pause short: the retry covers them.
			wait, wake = backoff.Next(), nil
			if failures.News(err) {
				l.cfg.Failed(err, wait)
			}
		default:
			backoff.Reset()
			if failures.Recovered() {
				l.cfg.Recovered()
			}
		}
		due := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-due.C:
			full = true
		case <-wake:
			full = false
			_ = retry.Sleep(ctx, l.cfg.Debounce) // ends early only with ctx, which is looked at below
		}
		due.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}
