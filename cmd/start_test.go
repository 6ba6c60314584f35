package cmd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/logging"
)

// runRole runs a role that has started or not under a context that a person ends.
func runRole(t *testing.T, started bool, run func(ctx context.Context, asked func(), failed func(error)) error) error {
	t.Helper()
	asked, ask := context.WithCancel(context.Background())
	defer ask()
	ctx, stop := context.WithCancelCause(asked)
	defer stop(nil)
	why := &reason{asked: asked, stop: stop}
	_, quiet := logging.ForKubernetes(zap.NewNop(), false)
	err := why.await(ctx, newLineUI(zap.NewNop()), quiet, func(ui UI) error {
		if started {
			ui.Ready(Ready{})
		}
		return run(ctx, ask, why.failed)
	})
	return why.of(err)
}

// The first thing that fails is the reason, whatever else falls over, and asking a process to stop
// is no failure. Nothing that hangs keeps a failing start for ever.
func TestReason_FirstFailureWins(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	for _, row := range []struct {
		name    string
		started bool
		run     func(ctx context.Context, ask func(), failed func(error)) error
		want    error
		took    time.Duration
	}{
		{name: "a part fails, and another over it", want: first,
			run: func(ctx context.Context, _ func(), failed func(error)) error {
				failed(first)
				failed(second)
				<-ctx.Done()
				return second
			},
		},
		{name: "refused before a part runs", want: first,
			run: func(context.Context, func(), func(error)) error { return first }},
		{name: "asked while it starts", want: nil,
			run: func(ctx context.Context, ask func(), failed func(error)) error {
				ask()
				<-ctx.Done()
				failed(second)
				return second
			},
		},
		{name: "asked after a failure", want: first,
			run: func(_ context.Context, ask func(), failed func(error)) error {
				failed(first)
				ask()
				return second
			},
		},
		{
			name: "a part fails and another hangs",
			want: first,
			took: stopsWithin,
			run: func(_ context.Context, _ func(), failed func(error)) error {
				failed(first)
				time.Sleep(time.Hour)
				return nil
			},
		},
		{
			name: "asked while it starts, and a part hangs",
			want: nil,
			took: stopsWithin,
			run: func(_ context.Context, ask func(), _ func(error)) error {
				ask()
				time.Sleep(time.Hour)
				return nil
			},
		},
		{
			name:    "a part fails later and another hangs",
			started: true,
			want:    first,
			took:    stopsWithin,
			run: func(_ context.Context, _ func(), failed func(error)) error {
				failed(first)
				time.Sleep(time.Hour)
				return nil
			},
		},
		{
			name:    "asked later, and it takes its time",
			started: true,
			want:    nil,
			took:    time.Minute,
			run: func(_ context.Context, ask func(), _ func(error)) error {
				ask()
				time.Sleep(time.Minute)
				return nil
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				err := runRole(t, row.started, row.run)
				if !errors.Is(err, row.want) || (err != nil) != (row.want != nil) {
					t.Errorf("ended with %v, want %v", err, row.want)
				}
				if took := time.Since(begin); took != row.took {
					t.Errorf("took %v, want %v", took, row.took)
				}
				// What hangs ends with the process; here it has to before the test does.
				time.Sleep(2 * time.Hour)
			})
		})
	}
}
