package cmd

import (
	"sync"
	"time"
)

// progressTimes lets one report through per piece of work and interval. The first one waits an
// interval too: short work needs no report.
type progressTimes struct {
	every time.Duration

	mu   sync.Mutex // guards last
	last map[string]time.Time
}

func newProgressTimes(every time.Duration) *progressTimes {
	return &progressTimes{every: every, last: map[string]time.Time{}}
}

func (p *progressTimes) due(what string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, seen := p.last[what]
	if seen && now.Sub(last) < p.every {
		return false
	}
	p.last[what] = now
	return seen
}
