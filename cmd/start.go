package cmd

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/logging"
	"github.com/mote-dev/mote/internal/upstream"
)

// role is what a process is about to be, a server or an agent. Its functions are called in this
// order.
type role struct {
	// configure makes the role's configuration of the settings.
	configure func(*zap.Logger) error
	// preflight finds out whether the role can run here, and takes the data folder for this
	// process. When it refuses, the host is as it was.
	preflight func(hostcheck.Host) (*datadir.Dir, error)
	// run runs the role until ctx ends. It calls opened once nothing can be refused any more, with
	// the files it makes outside of the data folder, and changes nothing before.
	run func(ctx context.Context, ui UI, opened func(outside ...string) error) error
}

// start checks everything that can be wrong before anything changes, and then runs the role.
func (p program) start(ctx context.Context, v settings.Values, r role) error {
	ui, log, closeUI, err := p.ui(v.Bool("debug"), v.String("log-format"))
	if err != nil {
		return err
	}
	defer closeUI()
	if err := r.configure(log); err != nil {
		return err
	}
	checked := ui.Phase("check the host")
	dir, err := r.preflight(hostcheck.ThisHost())
	if err != nil {
		checked(err)
		return err
	}
	quiet, err := upstream.BridgeKlog(log.Named("kubernetes"), v.Bool("debug"))
	if err != nil {
		checked(err)
		return errors.Join(err, dir.Abandon())
	}
	defer context.AfterFunc(ctx, quiet.Stopping)()
	opened := false
	err = r.run(ctx, quietUI{ui, quiet}, func(outside ...string) error {
		checked(nil)
		opened = true
		upstream.LimitGarbage()
		err := dir.Commit(dataVersions())
		for _, path := range outside {
			err = errors.Join(err, dir.RecordOutside(path))
		}
		return err
	})
	if !opened {
		checked(err)
		return errors.Join(err, dir.Abandon())
	}
	switch {
	case err != nil && ctx.Err() != nil:
		// Ctrl-C also interrupts the tools that are running just then.
		log.Info("stopped while starting", zap.Error(err))
		err = nil
	case err != nil:
		quiet.Failed()
	}
	return errors.Join(err, dir.Close())
}

// quietUI tells the filter of upstream's log lines when the start has ended.
type quietUI struct {
	UI
	quiet *logging.Quiet
}

func (u quietUI) Ready(r Ready) {
	u.quiet.Started()
	u.UI.Ready(r)
}
