package podnet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mote-dev/mote/netproxy/reconcile"
)

func TestNetwork_Run_EventsWhileItFails_KeepTheBackoff(t *testing.T) {
	n, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		passes := 0
		n.loop = reconcile.New(n.passes(func(context.Context, bool) error {
			passes++
			return errors.New("no")
		}))
		done := make(chan error, 1)
		go func() { done <- n.loop.Run(ctx) }()
		for ctx.Err() == nil {
			n.poke(true)
			time.Sleep(10 * time.Millisecond)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		// At 0, 1, 3, 7, 15, 25, 35, 45 and 55 seconds.
		if passes != 9 {
			t.Errorf("%d passes in a minute of failure, want 9", passes)
		}
	})
}
