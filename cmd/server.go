package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/hostcheck"
	"github.com/mote-dev/mote/logging"
)

func (p program) serverCommand() *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "run a cluster's control plane, and a node beside it",
		Description: "Every flag may also be set as a MOTE_* environment variable (MOTE_DATA_DIR for --data-dir)\n" +
			"or as a key of the configuration file (data-dir). Flags win over variables, variables over the file.",
		Flags: append([]cli.Flag{flag(configSetting)}, flags(serverSettings())...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v, err := p.settings(c, serverSettings())
			if err != nil {
				return err
			}
			return p.server(c.Context, v)
		},
	}
}

// server checks everything that can be wrong before anything changes, and then
// runs the two roles.
func (p program) server(ctx context.Context, v settings.Values) error {
	ui, log, closeUI, err := p.ui(v.Bool("debug"), v.String("log-format"))
	if err != nil {
		return err
	}
	defer closeUI()
	s, a, err := configs(v, log)
	if err != nil {
		return err
	}
	checked := ui.Phase("check the host")
	dir, err := preflight(hostcheck.ThisHost(), s, a)
	if err != nil {
		checked(err)
		return err
	}
	quiet, err := logging.BridgeKlog(log.Named("kubernetes"), s.Debug)
	if err != nil {
		return errors.Join(err, dir.Abandon())
	}
	defer context.AfterFunc(ctx, quiet.Stopping)()
	taken := false
	err = runServer(ctx, s, a, quietUI{ui, quiet}, func() error {
		checked(nil)
		taken = true
		return errors.Join(dir.Commit(dataVersions()), dir.RecordOutside(s.KubeconfigOutput))
	})
	if !taken {
		checked(err)
		return errors.Join(err, dir.Abandon())
	}
	switch {
	case err != nil && ctx.Err() != nil:
		// Ctrl-C also interrupts the tools that are running just then.
		log.Info("stopped on the way", zap.Error(err))
		err = nil
	case err != nil:
		quiet.Failed()
	}
	return errors.Join(err, dir.Close())
}

// quietUI tells the log of Kubernetes' parts when the start has ended.
type quietUI struct {
	UI
	quiet *logging.Quiet
}

func (u quietUI) Ready(r Ready) {
	u.quiet.Started()
	u.UI.Ready(r)
}

// ui returns what tells the user and the log that belongs to it: drawn for a
// terminal, lines otherwise.
func (p program) ui(debug bool, format string) (UI, *zap.Logger, func(), error) {
	options := logging.Options{Output: p.stderr, Format: format, Debug: debug}
	f, isFile := p.stderr.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) || format == logging.FormatJSON {
		log, err := logging.New(options)
		if err != nil {
			return nil, nil, nil, err
		}
		return newLineUI(log), log, func() { _ = log.Sync() }, nil
	}
	ui := newTerminalUI(f, func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 80
		}
		return width
	})
	options.Output, options.Terminal = ui, true
	log, err := logging.New(options)
	if err != nil {
		ui.close()
		return nil, nil, nil, err
	}
	return ui, log, ui.close, nil
}

// settings resolves the settings of a command from all their sources.
func (p program) settings(c *cli.Context, all []settings.Setting) (settings.Values, error) {
	given := map[string][]string{}
	for _, s := range append([]settings.Setting{configSetting}, all...) {
		if c.IsSet(s.Name) {
			given[s.Name] = flagItems(c, s)
		}
	}
	where, err := settings.Resolve([]settings.Setting{configSetting}, settings.Sources{Flags: given, LookupEnv: p.lookupEnv})
	if err != nil {
		return settings.Values{}, err
	}
	path := where.String("config")
	files, err := settings.ReadFiles(path, where.From("config") != "", fileKeys())
	if err != nil {
		return settings.Values{}, err
	}
	return settings.Resolve(all, settings.Sources{Flags: given, LookupEnv: p.lookupEnv, Files: files})
}

func flagItems(c *cli.Context, s settings.Setting) []string {
	switch s.Kind {
	case settings.List, settings.Args:
		return c.StringSlice(s.Name)
	case settings.Bool:
		return []string{fmt.Sprint(c.Bool(s.Name))}
	default:
		return []string{c.String(s.Name)}
	}
}

func flags(all []settings.Setting) []cli.Flag {
	out := make([]cli.Flag, len(all))
	for i, s := range all {
		out[i] = flag(s)
	}
	return out
}

// flag makes a setting's flag. Environment and default are left to Resolve,
// which alone knows the files between them.
func flag(s settings.Setting) cli.Flag {
	usage := s.Usage
	if s.Default != "" {
		usage += " (default: " + s.Default + ")"
	}
	switch s.Kind {
	case settings.List, settings.Args:
		return &cli.StringSliceFlag{Name: s.Name, Usage: usage}
	case settings.Bool:
		return &cli.BoolFlag{Name: s.Name, Usage: usage}
	default:
		// Numbers too: their form is checked in one place for all sources.
		return &cli.StringFlag{Name: s.Name, Usage: usage}
	}
}
