package wallclock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch_ClockRunsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		enough := errors.New("enough")
		looks := 0
		err := Watch(t.Context(), func(_ time.Time, set time.Duration) error {
			if looks++; looks == 5 {
				return enough
			}
			if set != 0 {
				t.Errorf("set by %v, want 0", set)
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("ended with %v, want the error of look", err)
		}
	})
}

func TestWatch_ContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*every)
		defer cancel()
		if err := Watch(ctx, func(time.Time, time.Duration) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}

func TestJump(t *testing.T) {
	for name, row := range map[string]struct{ wall, real, want time.Duration }{
		"on time":               {every, every, 0},
		"slewed a little":       {every + 5*time.Millisecond, every, 0},
		"set to next year":      {every + 400*24*time.Hour, every, 400 * 24 * time.Hour},
		"set back an hour":      {every - time.Hour, every, -time.Hour},
		"suspended, clock runs": {10 * time.Minute, 10 * time.Minute, 0},
	} {
		if got := jump(row.wall, row.real); got != row.want {
			t.Errorf("%s: set by %v, want %v", name, got, row.want)
		}
	}
}
