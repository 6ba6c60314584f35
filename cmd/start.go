package cmd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/logging"
	"github.com/mote-dev/mote/internal/upstream"
)

// stopsWithin is how long a role gets to stop after it failed, or was asked to while it started.
// What then still runs ends with the process: somebody waits for the reason, and for a new start.
const stopsWithin = 8 * time.Second

// errStuck is returned for parts that did not stop.
var errStuck = fmt.Errorf("parts of mote did not stop within %v", stopsWithin)

// role is what a process is about to be, a server or an agent. Its functions are called in this
// order.
type role struct {
	// configure makes the role's configuration of the settings.
	configure func(*zap.Logger) error
	// preflight finds out whether the role can run here, and takes the data folder for this
	// process. When it refuses, the host is as it was.
	preflight func(hostcheck.Host) (*datadir.Dir, error)
	// run runs the role until ctx ends. It calls opened once nothing can be refused any more, with
	// the files it makes outside of the data folder, and changes nothing before. failed hears of
	// the first failure at once.
	run func(ctx context.Context, ui UI, opened func(outside ...string) error, failed func(error)) error
}

// reason is why a process ends: the first thing that failed before it was asked to stop. What fails
// after that fails because of it.
type reason struct {
	asked context.Context // ends when a person or a service manager asks the process to stop
	stop  context.CancelCauseFunc

	mu  sync.Mutex // guards err
	err error
}

// failed keeps the first failure and makes the role stop.
func (r *reason) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && r.asked.Err() == nil {
		r.err = err
	}
	r.stop(err)
}

// of is why a role ended that returned err; nil if it was asked to.
func (r *reason) of(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || r.asked.Err() != nil {
		return r.err
	}
	return err
}

// start checks everything that can be wrong before anything changes, and then runs the role.
func (p program) start(asked context.Context, v settings.Values, r role) error {
	ui, log, closeUI, err := p.ui(v.Bool("debug"), v.String("log-format"))
	if err != nil {
		return err
	}
	defer closeUI()
	ctx, stop := context.WithCancelCause(asked)
	defer stop(nil)
	why := &reason{asked: asked, stop: stop}
	// Before upstream's settings are tried, which warn through klog.
	quiet, err := upstream.BridgeKlog(log.Named("kubernetes"), v.Bool("debug"), why.failed)
	if err != nil {
		return err
	}
	if err := r.configure(log); err != nil {
		return err
	}
	checked := ui.Phase("check the host")
	dir, err := r.preflight(hostcheck.ThisHost())
	if err != nil {
		checked(err)
		return err
	}
	defer context.AfterFunc(asked, quiet.Stopping)()
	var opened atomic.Bool
	err = why.await(ctx, ui, quiet, func(ui UI) error {
		return r.run(ctx, ui, func(outside ...string) error {
			checked(nil)
			opened.Store(true)
			upstream.LimitGarbage()
			err := dir.Commit(dataVersions())
			for _, path := range outside {
				err = errors.Join(err, dir.RecordOutside(path))
			}
			return err
		}, why.failed)
	})
	stuck := errors.Is(err, errStuck)
	if err != nil && (stuck || asked.Err() != nil) {
		// Ctrl-C also interrupts the tools that are running just then.
		log.Info("stopped while starting", zap.Error(err))
	}
	err = why.of(err)
	switch {
	case stuck:
		// The folder is given up with the process: parts may still write to it.
		quiet.Failed()
		return err
	case !opened.Load():
		checked(err)
		return errors.Join(err, dir.Abandon())
	case err != nil:
		quiet.Failed()
	}
	return errors.Join(err, dir.Close())
}

// await runs a role and returns what it returns. One that fails, or is asked to stop while it
// starts, gets stopsWithin to stop.
func (r *reason) await(ctx context.Context, ui UI, quiet *logging.Quiet, run func(UI) error) error {
	started := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		err := errors.New("ended without a reason")
		// Also when upstream's code ends this goroutine, having told the reason.
		defer func() { ended <- err }()
		err = run(startedUI{UI: ui, quiet: quiet, started: started})
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case <-started:
		if r.asked.Err() != nil {
			return <-ended
		}
	default:
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(stopsWithin):
		return errStuck
	}
}

// startedUI notices when the start has ended, and tells the filter of upstream's log lines.
type startedUI struct {
	UI
	quiet   *logging.Quiet
	started chan struct{} // closed by Ready
}

func (u startedUI) Ready(r Ready) {
	close(u.started)
	u.quiet.Started()
	u.UI.Ready(r)
}
