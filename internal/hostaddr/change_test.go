package hostaddr

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

var (
	before = net.IPv4(192, 0, 2, 1)
	after  = net.IPv4(192, 0, 2, 2)
)

// silent is a subscription to a kernel that reports nothing.
func silent(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}

// at returns what a machine lists, by the time since the start.
func at(steps map[time.Duration][]net.IP, fail func(since time.Duration) error) func() ([]net.IP, error) {
	start := time.Now()
	return func() ([]net.IP, error) {
		since := time.Since(start)
		if err := fail(since); err != nil {
			return nil, err
		}
		var latest time.Duration
		for step := range steps {
			if step <= since && step > latest {
				latest = step
			}
		}
		return steps[latest], nil
	}
}

func never(time.Duration) error { return nil }

func TestWaitChanged_SubscriptionFails_GoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		tries := 0
		overrun := func(ctx context.Context, _ func()) error {
			if tries++; tries > 3 {
				return silent(ctx, nil)
			}
			return unix.ENOBUFS
		}
		list := at(map[time.Duration][]net.IP{0: {before}, 2 * time.Second: {after}}, never)
		if err := waitChanged(t.Context(), before, list, overrun); err != nil {
			t.Error(err)
		}
		// Looked at after the second gap, at 3 s, and again after the third, at 7 s.
		if took := time.Since(begin); took != 3*time.Second+settle {
			t.Errorf("noticed after %s", took)
		}
	})
}

func TestWaitChanged_AddressesUnknown_AreNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		list := at(map[time.Duration][]net.IP{0: {before}}, func(since time.Duration) error {
			if since > 0 {
				return unix.EMFILE
			}
			return nil
		})
		if err := waitChanged(ctx, before, list, silent); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestWaitChanged_NoReport_IsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := at(map[time.Duration][]net.IP{0: {before}, time.Second: {}, 90 * time.Second: {after}}, never)
		begin := time.Now()
		if err := waitChanged(t.Context(), before, list, silent); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 2*poll+settle {
			t.Errorf("noticed after %s", took)
		}
	})
}

func TestSubscribe_EndsWithItsContext_LeavesNothing(t *testing.T) {
	running := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- subscribe(ctx, func() {}) }()
	cancel()
	<-done
	goleak.VerifyNone(t, running)
}
