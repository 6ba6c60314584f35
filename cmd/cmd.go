package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/habits"
	"github.com/mote-dev/mote/cmd/settings"
)

// Main runs the command line until it is done or ctx ends, and returns the process's exit code: 0
// when all went well, 1 for anything refused or failed.
func Main(ctx context.Context, args []string) int {
	p := program{
		stdin:     os.Stdin,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
		lookupEnv: os.LookupEnv,
		environ:   os.Environ,
	}
	return p.run(ctx, args)
}

// program is the command line with everything it takes from the process, so that tests can run it
// in theirs.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)
	// environ lists the environment; nil means that nothing in it is looked for.
	environ func() []string
	// args are the process's arguments.
	args []string
}

// exitError ends the process with a code and no message of ours: what was run has said its own.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (p program) run(ctx context.Context, args []string) int {
	// A link called like a tool behaves as that tool.
	if len(args) > 0 {
		if name := filepath.Base(args[0]); slices.Contains([]string{"kubectl", "ctr", "crictl"}, name) {
			args = append([]string{"mote", name}, args[1:]...)
		}
	}
	args = helpWords(args)
	p.args = args
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

// helpWords puts into mote's words what people type to get help or the version. Behind a command
// it is the command's.
func helpWords(args []string) []string {
	if len(args) < 2 {
		return args
	}
	switch args[1] {
	case "--version", "-version", "-v", "-V":
		return append([]string{args[0], "version"}, args[2:]...)
	case "help":
		return append(append([]string{args[0]}, args[2:]...), "--help")
	}
	return args
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
			p.crictlCommand(),
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
			p.stopCommand(),
			p.uninstallCommand(),
			p.versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if word := c.Args().First(); word != "" {
				return unknownCommand(word, "mote", commandNames(c.App.Commands))
			}
			return cli.ShowAppHelp(c)
		},
	}
	app.OnUsageError = p.usageError("mote", nil)
	for _, c := range app.Commands {
		p.prepare(c, "mote "+c.Name)
	}
	app.CustomAppHelpTemplate = asTemplate(appText(app))
	return app
}

// prepare gives a command and those below it what all of them share.
func (p program) prepare(c *cli.Command, path string) {
	c.OnUsageError = p.usageError(path, c.Flags)
	c.HideHelpCommand = true
	c.CustomHelpTemplate = asTemplate(helpText(path, c))
	for _, sub := range c.Subcommands {
		p.prepare(sub, path+" "+sub.Name)
	}
	if len(c.Subcommands) > 0 && c.Action == nil {
		names := commandNames(c.Subcommands)
		c.Action = func(ctx *cli.Context) error {
			switch word := ctx.Args().First(); word {
			case "":
			case "help":
				return cli.ShowSubcommandHelp(ctx)
			default:
				return unknownCommand(word, path, names)
			}
			return fmt.Errorf("%s needs a command: one of %s", path, strings.Join(names, ", "))
		}
	}
}

// unknownCommand says what to do about a word that is no command of path.
func unknownCommand(word, path string, names []string) error {
	of := ""
	if path != "mote" {
		of = " of " + path
	} else if answer := habits.Command(word); answer != "" {
		return fmt.Errorf("unknown command %q: %s", word, answer)
	}
	return fmt.Errorf("unknown command %q%s%s; `%s --help` lists the commands", word, of,
		settings.Suggest(word, names), path)
}

// usageError makes one line with a remedy of what the flag parser says, and one for each unknown
// flag, of which the parser reports the first.
func (p program) usageError(path string, flags []cli.Flag) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		text := err.Error()
		if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
			names := unknownFlags(p.args[min(len(p.args), strings.Count(path, " ")+1):], flags)
			if name = strings.TrimLeft(name, "-"); !slices.Contains(names, name) {
				names = []string{name}
			}
			var errs []error
			for _, name := range names {
				errs = append(errs, unknownFlag(name, path, flags))
			}
			return errors.Join(errs...)
		}
		if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
			return fmt.Errorf("flag --%s needs a value; `%s --help` says which", strings.TrimLeft(name, "-"), path)
		}
		return fmt.Errorf("%s; `%s --help` lists the flags", text, path)
	}
}

// unknownFlag says what to do about a flag that a command does not have.
func unknownFlag(name, path string, flags []cli.Flag) error {
	answer := cmp.Or(habits.Setting(name), ofOtherRole(name, path))
	if len(name) == 1 {
		answer = habits.Short(name)
		if other := ofOtherRole(strings.TrimPrefix(answer, "use --"), path); other != "" {
			answer = other
		}
		name = "-" + name
	} else {
		name = "--" + name
	}
	if answer != "" {
		return fmt.Errorf("unknown flag %s: %s", name, answer)
	}
	var known []string
	for _, f := range flags {
		known = append(known, f.Names()...)
	}
	hint := settings.Suggest(strings.TrimLeft(name, "-"), known)
	return fmt.Errorf("unknown flag %s%s; `%s --help` lists the flags", name, strings.Replace(hint, `"`, `"--`, 1),
		path)
}

// ofOtherRole answers a setting that only the other role has; "" if path is no role, or the role
// has it.
func ofOtherRole(name, path string) string {
	has := func(all []settings.Setting) bool {
		return slices.ContainsFunc(all, func(s settings.Setting) bool { return s.Name == name })
	}
	server, agent := has(serverSettings()), has(agentSettings())
	switch {
	case path == "mote server" && name == "server":
		return "a machine joins another with `mote agent`; several servers share an etcd: use " +
			"--datastore-endpoint, see docs/several-servers.md"
	case path == "mote server" && agent && !server:
		return "it is a setting of `mote agent`"
	case path == "mote agent" && server && !agent:
		return "it is a setting of `mote server`"
	}
	return ""
}

// unknownFlags lists the flags among arguments that are not known. What follows an unknown one may
// be its value, and is passed over unless it looks like a flag.
func unknownFlags(args []string, flags []cli.Flag) []string {
	takesValue := map[string]bool{"help": false, "h": false}
	for _, f := range flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	var unknown []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		value, known := takesValue[name]
		switch {
		case known && value && !hasValue:
			i++
		case !known && !slices.Contains(unknown, name):
			unknown = append(unknown, name)
		}
	}
	return unknown
}

// noArgs refuses words that the command would silently ignore.
func noArgs(c *cli.Context) error {
	if word := c.Args().First(); word != "" {
		return fmt.Errorf("unexpected argument %q: `%s` takes flags only", word, c.Command.HelpName)
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
