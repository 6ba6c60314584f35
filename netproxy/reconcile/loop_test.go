package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// trace runs a loop whose passes take their results from outcome and returns when each one ran, as
// seconds since the start ("f" marks full passes), and what was reported.
func trace(t *testing.T, until time.Duration, outcome func(pass int) error,
	drive func(ctx context.Context, l *Loop)) (passes, reports []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), until)
		defer cancel()
		l := New(Config{
			Debounce:   500 * time.Millisecond,
			Interval:   time.Minute,
			FirstRetry: time.Second,
			LastRetry:  4 * time.Second,
			Pass: func(_ context.Context, full bool) error {
				passes = append(passes,
					fmt.Sprintf("%g%s", time.Since(begin).Seconds(), map[bool]string{true: "f"}[full]))
				return outcome(len(passes))
			},
			Failed:    func(err error, pause time.Duration) { reports = append(reports, fmt.Sprint(err, " ", pause)) },
			Recovered: func() { reports = append(reports, "recovered") },
		})
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		drive(ctx, l)
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return passes, reports
}

// storm triggers a hundred times a second until ctx ends.
func storm(ctx context.Context, l *Loop) {
	for ctx.Err() == nil {
		l.Trigger()
		time.Sleep(10 * time.Millisecond)
	}
}

func TestLoop_Run_TriggersDuringFailure_KeepTheBackoff(t *testing.T) {
	passes, reports := trace(t, 20*time.Second, func(int) error { return errors.New("no") }, storm)
	if want := "0f 1f 3f 7f 11f 15f 19f"; strings.Join(passes, " ") != want {
		t.Errorf("passes ran at %v, want %s", passes, want)
	}
	if !slices.Equal(reports, []string{"no 1s"}) {
		t.Errorf("reported %q, want one failure", reports)
	}
}

func TestLoop_Run_TriggerDuringFailure_IsCoveredByTheRetry(t *testing.T) {
	outcome := func(pass int) error {
		if pass == 1 {
			return errors.New("no")
		}
		return nil
	}
	passes, reports := trace(t, 20*time.Second, outcome, func(_ context.Context, l *Loop) {
		time.Sleep(100 * time.Millisecond)
		l.Trigger()
	})
	if want := "0f 1f"; strings.Join(passes, " ") != want {
		t.Errorf("passes ran at %v, want %s", passes, want)
	}
	if !slices.Equal(reports, []string{"no 1s", "recovered"}) {
		t.Errorf("reported %q", reports)
	}
}

func TestLoop_Run_GathersTriggers(t *testing.T) {
	passes, _ := trace(t, 70*time.Second, func(int) error { return nil }, func(_ context.Context, l *Loop) {
		time.Sleep(time.Second)
		for range 40 {
			l.Trigger()
			time.Sleep(10 * time.Millisecond)
		}
	})
	if want := "0f 1.5 61.5f"; strings.Join(passes, " ") != want {
		t.Errorf("passes ran at %v, want %s", passes, want)
	}
}

func TestLoop_Run_BacksOffAnewAfterASuccess(t *testing.T) {
	outcome := func(pass int) error {
		switch pass {
		case 1, 2, 4:
			return errors.New("a")
		case 5:
			return errors.New("b")
		}
		return nil
	}
	passes, reports := trace(t, 20*time.Second, outcome, func(_ context.Context, l *Loop) {
		time.Sleep(10 * time.Second)
		l.Trigger()
	})
	if want := "0f 1f 3f 10.5 11.5f 13.5f"; strings.Join(passes, " ") != want {
		t.Errorf("passes ran at %v, want %s", passes, want)
	}
	if want := []string{"a 1s", "recovered", "a 1s", "b 2s", "recovered"}; !slices.Equal(reports, want) {
		t.Errorf("reported %q, want %q", reports, want)
	}
}

func TestLoop_Run_EndsDuringDebounce(t *testing.T) {
	passes, _ := trace(t, time.Second, func(int) error { return nil }, func(_ context.Context, l *Loop) {
		time.Sleep(900 * time.Millisecond)
		l.Trigger()
	})
	if want := "0f"; strings.Join(passes, " ") != want {
		t.Errorf("passes ran at %v, want %s", passes, want)
	}
}
