package retry

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoff_Next_DoublesToTheLast(t *testing.T) {
	b := Backoff{First: time.Second, Last: 5 * time.Second}
	var got []time.Duration
	for range 5 {
		got = append(got, b.Next())
	}
	b.Reset()
	got = append(got, b.Next())
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second,
		time.Second}
	if !slices.Equal(got, want) {
		t.Errorf("pauses are %v, want %v", got, want)
	}
}

func TestBackoff_Next_WithoutLast_StaysAtFirst(t *testing.T) {
	b := Backoff{First: time.Second}
	if first, second := b.Next(), b.Next(); first != time.Second || second != time.Second {
		t.Error("without Last the pause grew past First")
	}
}

func TestBackoff_Next_JitterStaysInItsBounds(t *testing.T) {
	differ := map[time.Duration]bool{}
	for range 100 {
		b := Backoff{First: time.Second, Last: time.Minute, Jitter: 0.2}
		d := b.Next()
		if d < 800*time.Millisecond || d > 1200*time.Millisecond {
			t.Fatalf("pause of 1s with 20 %% of jitter is %s", d)
		}
		differ[d] = true
		if d = b.Next(); d < 1600*time.Millisecond || d > 2400*time.Millisecond {
			t.Fatalf("pause of 2s with 20 %% of jitter is %s", d)
		}
	}
	if len(differ) < 2 {
		t.Error("a hundred pauses with jitter were all the same")
	}
}

func TestBackoff_Wait_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{First: time.Second, Last: time.Hour}
		begin := time.Now()
		if err := b.Wait(t.Context()); err != nil || time.Since(begin) != time.Second {
			t.Errorf("waited %s, %v; want 1s", time.Since(begin), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if err := b.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("waited %s, %v; want the context's end after 1s", time.Since(begin), err)
		}
	})
}

func TestFailures_News_OncePerText(t *testing.T) {
	var f Failures
	if f.Recovered() {
		t.Error("recovered from nothing")
	}
	a, b := errors.New("a"), errors.New("b")
	var got []bool
	for _, err := range []error{a, a, errors.New("a"), b, a} {
		got = append(got, f.News(err))
	}
	if want := []bool{true, false, false, true, true}; !slices.Equal(got, want) {
		t.Errorf("news are %v, want %v", got, want)
	}
	if !f.Recovered() || f.Recovered() {
		t.Error("a reported failure has to be recovered from once")
	}
	if !f.News(a) {
		t.Error("a failure after a success is news")
	}
}
