package logging

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// holdFor is how long a start may take before what was held is written after all: somebody then
	// wants to know why.
	holdFor = 30 * time.Second
	// holdLines bounds what is held; the newest lines are the ones that tell why a start failed.
	holdLines = 500
	// repeatWindow and repeatLimit bound how often one message is written.
	repeatWindow = time.Minute
	repeatLimit  = 3
	// repeatKeys bounds the messages that are counted at a time.
	repeatKeys = 1024
)

// state is what a Quiet does with a line.
type state int

const (
	starting state = iota
	running
	stopping
)

// Quiet decides what of Kubernetes' own log is worth writing. While a server starts, its parts wait
// for one another and warn of it, and while it stops likewise: warnings of the start are held and
// written only if it fails or hangs, lines of the stop are dropped. Errors of the start are
// written, as the kubelet may end the process right after one. A message that is repeated without
// end is written a few times a minute.
type Quiet struct {
	now func() time.Time

	mu      sync.Mutex // guards what follows
	state   state
	since   time.Time
	held    []line
	window  time.Time
	written map[string]int
}

// line is a log line with where it was to be written.
type line struct {
	core   zapcore.Core
	entry  zapcore.Entry
	fields []zapcore.Field
}

// ForKubernetes returns the logger that Kubernetes' libraries write to, derived from log. Their
// info lines are written only in debug: at every start there are hundreds, and none says what mote
// is doing. Without debug, the Quiet decides about the rest; report to it how the start goes.
func ForKubernetes(log *zap.Logger, debug bool) (*zap.Logger, *Quiet) {
	quiet := newQuiet(time.Now)
	if !debug {
		log = log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel),
			zap.WrapCore(func(c zapcore.Core) zapcore.Core { return quietCore{c, quiet} }))
	}
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return expectedFilter{c} })), quiet
}

func newQuiet(now func() time.Time) *Quiet {
	return &Quiet{
		now:     now,
		since:   now(),
		window:  now(),
		written: map[string]int{},
	}
}

// Started ends the start: what was held is dropped.
func (q *Quiet) Started() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state == starting {
		q.state, q.held = running, nil
	}
}

// Stopping begins the stop. Lines held by a start that did not end are kept for Failed.
func (q *Quiet) Stopping() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.state = stopping
}

// Failed writes what was held: the start has failed, and this may say why. Of what comes after it
// nothing is written, as parts that nobody waits for say that they were ended, after the reason
// that the user is told.
func (q *Quiet) Failed() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release()
	q.state = stopping
}

// release writes the held lines. The caller holds mu.
func (q *Quiet) release() {
	for _, l := range q.held {
		_ = l.core.Write(l.entry, l.fields)
	}
	q.held = nil
}

// pass reports whether a line is to be written now.
func (q *Quiet) pass(l line) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	switch q.state {
	case stopping:
		return false
	case starting:
		if now.Sub(q.since) >= holdFor {
			q.state = running
			q.release()
		} else if l.entry.Level < zapcore.ErrorLevel {
			if len(q.held) == holdLines {
				q.held = append(q.held[:0], q.held[1:]...)
			}
			q.held = append(q.held, l)
			return false
		}
	}
	if now.Sub(q.window) >= repeatWindow || len(q.written) >= repeatKeys {
		q.window = now
		clear(q.written)
	}
	q.written[l.entry.Message]++
	return q.written[l.entry.Message] <= repeatLimit
}

// quietCore asks a Quiet before it writes.
type quietCore struct {
	zapcore.Core
	quiet *Quiet
}

func (c quietCore) With(fields []zapcore.Field) zapcore.Core {
	return quietCore{c.Core.With(fields), c.quiet}
}

func (c quietCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c quietCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if !c.quiet.pass(line{c.Core, e, fields}) {
		return nil
	}
	return c.Core.Write(e, fields)
}
