package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/settings"
)

// Main runs the command line and returns the process's exit code: 0 when all went well, 1 for
// anything refused or failed.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	p := program{
		stdin:     os.Stdin,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
		lookupEnv: os.LookupEnv,
	}
	return p.run(ctx, args)
}

// program is the command line with everything it takes from the process, so that tests can run it
// in theirs.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)
}

// exitError ends the process with a code and no message of ours: what was run has said its own.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (p program) run(ctx context.Context, args []string) int {
	// A link called kubectl or ctr behaves as that tool.
	if len(args) > 0 {
		if name := filepath.Base(args[0]); name == "kubectl" || name == "ctr" {
			args = append([]string{"mote", name}, args[1:]...)
		}
	}
	err := p.app().RunContext(ctx, args)
	if err == nil {
		return 0
	}
	if agent.CuredByRestart(err) {
		fmt.Fprintf(p.stderr, "mote: %v; starting again, containers go on\n", err)
		// Only returns if it fails.
		err = again(args)
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	for _, line := range errorLines(err) {
		fmt.Fprintf(p.stderr, "mote: %s\n", line)
	}
	return 1
}

// again replaces the process's program with itself, from the start.
func again(args []string) error {
	file, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	if err := syscall.Exec(file, args, os.Environ()); err != nil {
		return fmt.Errorf("start %s again: %w", file, err)
	}
	return nil
}

func (p program) app() *cli.App {
	app := &cli.App{
		Name:                      "mote",
		Usage:                     "Kubernetes in one small process",
		HideVersion:               true,
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		Reader:                    p.stdin,
		Writer:                    p.stdout,
		ErrWriter:                 p.stderr,
		// Errors are printed once, by run.
		ExitErrHandler: func(*cli.Context, error) {},
		Commands: []*cli.Command{
			p.serverCommand(),
			p.agentCommand(),
			p.kubectlCommand(),
			p.ctrCommand(),
			p.imageCommand(),
			p.checkCommand(),
			p.statusCommand(),
			p.tokenCommand(),
			p.nodeCommand(),
			p.storeCommand(),
			p.snapshotCommand(),
			p.kubeconfigCommand(),
			p.certificateCommand(),
			p.completionCommand(),
			p.uninstallCommand(),
			p.versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if word := c.Args().First(); word != "" {
				return fmt.Errorf("unknown command %q%s; `mote --help` lists the commands", word,
					settings.Suggest(word, commandNames(c.App.Commands)))
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.OnUsageError = usageError("mote", nil)
	for _, c := range app.Commands {
		prepare(c, "mote "+c.Name)
	}
	return app
}

// prepare gives a command and those below it what all of them share.
func prepare(c *cli.Command, path string) {
	c.OnUsageError = usageError(path, c.Flags)
	c.HideHelpCommand = true
	for _, sub := range c.Subcommands {
		prepare(sub, path+" "+sub.Name)
	}
	if len(c.Subcommands) > 0 && c.Action == nil {
		names := commandNames(c.Subcommands)
		c.Action = func(ctx *cli.Context) error {
			if word := ctx.Args().First(); word != "" {
				return fmt.Errorf("unknown command %q of %s%s; `%s --help` lists the commands", word, path,
					settings.Suggest(word, names), path)
			}
			return fmt.Errorf("%s needs a command: one of %s", path, strings.Join(names, ", "))
		}
	}
}

// usageError makes one line with a remedy of what the flag parser says.
func usageError(path string, flags []cli.Flag) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		text := err.Error()
		if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
			name = strings.TrimLeft(name, "-")
			var known []string
			for _, f := range flags {
				known = append(known, f.Names()...)
			}
			hint := settings.Suggest(name, known)
			if hint != "" {
				hint = strings.Replace(hint, `"`, `"--`, 1)
			}
			return fmt.Errorf("unknown flag --%s%s; `%s --help` lists the flags", name, hint, path)
		}
		if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
			return fmt.Errorf("flag --%s needs a value; `%s --help` says which", strings.TrimLeft(name, "-"), path)
		}
		return fmt.Errorf("%s; `%s --help` lists the flags", text, path)
	}
}

// noArgs refuses words that the command would silently ignore.
func noArgs(c *cli.Context) error {
	if word := c.Args().First(); word != "" {
		return fmt.Errorf("unexpected argument %q: `mote %s` takes flags only", word, c.Command.Name)
	}
	return nil
}

func commandNames(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}
