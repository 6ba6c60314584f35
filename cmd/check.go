package cmd

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
)

func (p program) checkCommand() *cli.Command {
	all := serverSettings()
	return &cli.Command{
		Name:  "check",
		Usage: "check whether this host can run mote, and say what to fix if not",
		Description: "Takes the settings of `mote server`. Nothing on the host is changed. The exit code is 1 when " +
			"something required is missing.",
		Flags: append([]cli.Flag{outputFlag(), flag(configSetting)}, flags(all)...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			v, err := p.settings(c, all)
			if err != nil {
				return err
			}
			return p.check(c, v, hostcheck.ThisHost())
		},
	}
}

func (p program) check(c *cli.Context, v settings.Values, h hostcheck.Host) error {
	s, a, err := configs(v, nil)
	if err != nil {
		return err
	}
	options := hostOptions(s, a)
	running, err := datadir.Holder(s.DataDir)
	if err == nil && running != 0 {
		// Its ports are taken by the very server this check is about.
		options.Ports = nil
	}
	results := hostcheck.Run(h, options)
	if err := p.print(c, results, func() { p.printResults(results, running) }); err != nil {
		return err
	}
	if hostcheck.Faults(results) != nil {
		return exitError(1)
	}
	return nil
}

func (p program) printResults(results []hostcheck.Result, running int) {
	colour := func(_ hostcheck.Level, s string) string { return s }
	if f, ok := p.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		codes := map[hostcheck.Level]string{hostcheck.OK: "32", hostcheck.Warn: "33", hostcheck.Fail: "31"}
		colour = func(l hostcheck.Level, s string) string { return "\x1b[" + codes[l] + "m" + s + "\x1b[0m" }
	}
	count := map[hostcheck.Level]int{}
	for _, r := range results {
		count[r.Level]++
		fmt.Fprintf(p.stdout, "%s  %-15s %s\n", colour(r.Level, fmt.Sprintf("%-4s", r.Level)), r.Name, r.Found)
		if r.Remedy != "" {
			fmt.Fprintf(p.stdout, "      %-15s → %s\n", "", r.Remedy)
		}
	}
	if running != 0 {
		fmt.Fprintf(p.stdout, "A mote runs on this data-dir (process %d): ports were not looked at.\n", running)
	}
	switch {
	case count[hostcheck.Fail] > 0:
		fmt.Fprintf(p.stdout, "%d of %d checks failed: mote does not start here yet.\n", count[hostcheck.Fail],
			len(results))
	case count[hostcheck.Warn] > 0:
		fmt.Fprintf(p.stdout, "mote runs here; %d warnings.\n", count[hostcheck.Warn])
	default:
		fmt.Fprintln(p.stdout, "mote runs here.")
	}
}
