package giveback

import (
	"context"
	"runtime/metrics"
	"time"
)

const (
	// interval is how often the work is looked at.
	interval = 5 * time.Second
	// busy is how many bytes of objects are made in an interval at least while there is much work.
	// A server with nothing to do makes a tenth of it, one with 16 clients ten times as much.
	busy = 32 << 20
)

// releases is when memory is given back after the work has died down: once when the last requests
// are through, and once when the caches have let go of what they keep for a while, the watch caches
// for 75 seconds.
var releases = []time.Duration{30 * time.Second, 105 * time.Second}

// Run calls release after the start and after each time of much work, until ctx ends. A release may
// cost what is unpleasant under load, such as a collection of garbage.
func Run(ctx context.Context, release func()) {
	run(ctx, allocated, release)
}

func run(ctx context.Context, allocated func() uint64, release func()) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	p := pace{last: allocated(), quietSince: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			if p.look(time.Now(), allocated()) {
				release()
			}
		}
	}
}

// allocated returns the bytes of all objects that were ever made.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// pace follows the work of a process by the objects it makes. CPU time would not do: other
// processes and slow machines change what much of it is.
type pace struct {
	// last is what was allocated at the last look, most the largest step since the last release.
	last, most uint64
	// quietSince is when the last time of much work ended, done how many releases came since.
	quietSince time.Time
	done       int
}

// look reports whether a release is due.
func (p *pace) look(now time.Time, allocated uint64) bool {
	step := allocated - p.last
	p.last = allocated
	p.most = max(p.most, step)
	// Half of what was is not quiet yet. What the caches do to let go is less.
	if step >= busy && step >= p.most/2 {
		p.quietSince, p.done = now, 0
		return false
	}
	if p.done == len(releases) || now.Sub(p.quietSince) < releases[p.done] {
		return false
	}
	if p.done++; p.done == len(releases) {
		p.most = 0
	}
	return true
}
