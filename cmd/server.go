package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/logging"
	"github.com/mote-dev/mote/server"
)

func (p program) serverCommand() *cli.Command {
	return &cli.Command{
		Name:  "server",
		Usage: "run a cluster's control plane and a node",
		Description: "Every flag may also be set as a MOTE_* environment variable (MOTE_DATA_DIR for --data-dir)\n" +
			"or as a key of the configuration file (data-dir). Flags win over variables, variables over the file.",
		Flags: flags(grouped(append(serverSettings(), configSetting))),
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

func (p program) server(ctx context.Context, v settings.Values) error {
	var s server.Config
	var a *agent.Config
	return p.start(ctx, v, role{
		configure: func(log *zap.Logger) (err error) {
			s, a, err = configs(v, log)
			return err
		},
		preflight: func(h hostcheck.Host) (*datadir.Dir, error) { return preflight(h, s, a) },
		run: func(ctx context.Context, ui UI, opened func(...string) error, failed func(error)) error {
			s.Failed = failed
			if a != nil {
				a.Failed = failed
			}
			return runServer(ctx, s, a, ui, func() error { return opened(s.KubeconfigOutput) })
		},
	})
}

// ui returns what tells the user and the log that belongs to it: drawn for a terminal, lines
// otherwise.
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
	ui := newTerminalUI(f, p.plain(), func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 80
		}
		return width
	})
	options.Output, options.Terminal, options.Plain = ui, true, p.plain()
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
	where, err := settings.Resolve([]settings.Setting{configSetting},
		settings.Sources{Flags: given, LookupEnv: p.lookupEnv})
	if err != nil {
		return settings.Values{}, err
	}
	path := where.String("config")
	files, err := settings.ReadFiles(path, where.From("config") != "", fileKeys())
	if err := errors.Join(p.checkVariables(all), err); err != nil {
		return settings.Values{}, err
	}
	v, err := settings.Resolve(all, settings.Sources{Flags: given, LookupEnv: p.lookupEnv, Files: files})
	if err != nil {
		return settings.Values{}, err
	}
	return v, v.Replace(dataDirSetting.Name, datadir.Resolve)
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

// flag makes a setting's flag. Environment and default are left to Resolve, which alone knows the
// files between them.
func flag(s settings.Setting) cli.Flag {
	usage := s.Usage
	if s.Default != "" {
		usage += " (default: " + s.Default + ")"
	}
	switch s.Kind {
	case settings.List, settings.Args:
		return &cli.StringSliceFlag{Name: s.Name, Usage: usage, Category: s.Group}
	case settings.Bool:
		return &cli.BoolFlag{Name: s.Name, Usage: usage, Category: s.Group}
	default:
		// Numbers too: their form is checked in one place for all sources.
		return &cli.StringFlag{Name: s.Name, Usage: usage, Category: s.Group}
	}
}
