package logging

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

type quietLog struct {
	*Quiet
	log  *zap.Logger
	logs *observer.ObservedLogs
	now  time.Time
}

func newQuietLog() *quietLog {
	core, logs := observer.New(zap.WarnLevel)
	q := &quietLog{logs: logs, now: time.Unix(0, 0)}
	q.Quiet = newQuiet(func() time.Time { return q.now })
	q.log = zap.New(core).WithOptions(
		zap.WrapCore(func(c zapcore.Core) zapcore.Core { return quietCore{c, q.Quiet} })).With(zap.String("a", "b"))
	return q
}

func (q *quietLog) want(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, e := range q.logs.TakeAll() {
		got = append(got, e.Message)
		if e.ContextMap()["a"] != "b" {
			t.Errorf("line %q lost its context", e.Message)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("lines are %q, want %q", got, want)
	}
}

func TestQuiet_GoodStart(t *testing.T) {
	q := newQuietLog()
	q.log.Warn("waiting")
	q.log.Info("below the level")
	q.want(t)
	q.Started()
	q.log.Warn("running")
	q.want(t, "running")
	q.Stopping()
	q.log.Error("gone away")
	q.Failed()
	q.want(t)
}

func TestQuiet_FailedStart(t *testing.T) {
	q := newQuietLog()
	q.log.Warn("one")
	q.log.Error("at once")
	q.want(t, "at once")
	q.log.Warn("two")
	q.Stopping()
	q.log.Error("three")
	q.Failed()
	q.want(t, "one", "two")
}

func TestQuiet_AfterFailedStart(t *testing.T) {
	q := newQuietLog()
	q.log.Warn("one")
	q.Failed()
	q.log.Error("context canceled")
	q.want(t, "one")
}

func TestQuiet_FailedStartKeepsTheNewest(t *testing.T) {
	q := newQuietLog()
	for i := range holdLines + 3 {
		q.log.Warn(fmt.Sprint(i))
	}
	q.Failed()
	got := q.logs.TakeAll()
	if len(got) != holdLines || got[0].Message != "3" || got[holdLines-1].Message != fmt.Sprint(holdLines+2) {
		t.Errorf("%d lines from %q", len(got), got[0].Message)
	}
}

func TestQuiet_HangingStart(t *testing.T) {
	q := newQuietLog()
	q.log.Warn("one")
	q.now = q.now.Add(holdFor)
	q.log.Warn("two")
	q.want(t, "one", "two")
}

func TestQuiet_Repeats(t *testing.T) {
	q := newQuietLog()
	q.Started()
	for range 100 {
		q.log.Warn("again")
	}
	q.log.Warn("another")
	q.want(t, "again", "again", "again", "another")
	q.now = q.now.Add(repeatWindow)
	q.log.Warn("again")
	q.want(t, "again")
}
