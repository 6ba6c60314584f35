package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields the pauses between attempts: First, then twice the pause before, up to Last. Fill
// in the exported fields; the zero value of the rest is ready. It is for one goroutine.
type Backoff struct {
	// First is the pause after the first failure, and after Reset.
	First time.Duration
	// Last is the longest pause. Less than First means First.
	Last time.Duration
	// Jitter spreads each pause evenly over plus or minus this part of it, so that many clients of
	// one server do not come back together. Zero means exact pauses; 0.2 is 20 %.
	Jitter float64

	next time.Duration
}

// Next returns the pause before the next attempt.
func (b *Backoff) Next() time.Duration {
	pause := max(b.next, b.First)
	b.next = min(2*pause, max(b.Last, b.First))
	if b.Jitter == 0 {
		return pause
	}
	return time.Duration(float64(pause) * (1 + b.Jitter*(2*rand.Float64()-1)))
}

// Reset makes First the next pause again, after an attempt that succeeded.
func (b *Backoff) Reset() { b.next = 0 }

// Wait sleeps for the next pause. It returns ctx's error if ctx ends first.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Sleep sleeps for d. It returns ctx's error if ctx ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
