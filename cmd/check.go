package cmd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/upstream"
)

func (p program) checkCommand() *cli.Command {
	servers, agents := serverSettings(), agentSettings()
	// The flags of both roles; a flag that both have is the same one.
	all := slices.Clone(servers)
	for _, s := range agents {
		if !has(servers, s.Name) {
			all = append(all, s)
		}
	}
	return &cli.Command{
		Name:  "check",
		Usage: "check whether this host can run mote, and say what to fix if not",
		Description: "Takes the settings of `mote server`, with --agent those of `mote agent`. Nothing on the host " +
			"is changed.\nThe exit code is 1 when something required is missing.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "agent", Usage: "check for `mote agent`, which needs no server ports"},
			outputFlag()}, flags(grouped(append(slices.Clone(all), configSetting)))...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			own, role, other := servers, "`mote agent`", "add --agent"
			if c.Bool("agent") {
				own, role, other = agents, "`mote server`", "leave out --agent"
			}
			for _, s := range all {
				if c.IsSet(s.Name) && !has(own, s.Name) {
					return fmt.Errorf("--%s is a setting of %s: leave it out, or %s", s.Name, role, other)
				}
			}
			v, err := p.settings(c, own)
			if err != nil {
				return err
			}
			// Upstream's checks warn through klog of what is no fault.
			if _, err := upstream.BridgeKlog(zap.NewNop(), false, func(error) {}); err != nil {
				return err
			}
			if c.Bool("agent") {
				return p.checkAgent(c, v, hostcheck.ThisHost())
			}
			return p.checkServer(c, v, hostcheck.ThisHost())
		},
	}
}

func has(all []settings.Setting, name string) bool {
	return slices.ContainsFunc(all, func(s settings.Setting) bool { return s.Name == name })
}

func (p program) checkServer(c *cli.Context, v settings.Values, h hostcheck.Host) error {
	s, a, err := configs(v, nil)
	if err != nil {
		return err
	}
	return p.check(c, h, hostOptions(s, a))
}

// checkAgent checks for a node alone. One that was not told yet where to join passes: people check
// a machine before they make a token for it.
func (p program) checkAgent(c *cli.Context, v settings.Values, h hostcheck.Host) error {
	a, err := agentSettingsConfig(v, nil)
	if err != nil {
		return err
	}
	var told []hostcheck.Result
	for _, e := range parts(a.MayStart()) {
		if !errors.Is(e, agent.ErrNoServer) && !errors.Is(e, join.ErrNoToken) {
			return e
		}
		found, remedy, _ := strings.Cut(e.Error(), ": ")
		told = append(told, hostcheck.Result{
			Name:   "joining",
			Level:  hostcheck.Warn,
			Found:  found,
			Remedy: remedy,
		})
	}
	return p.check(c, h, agentOptions(a), told...)
}

// check prints what the host lacks, and what is known to be missing beside it.
func (p program) check(c *cli.Context, h hostcheck.Host, options hostcheck.Options, also ...hostcheck.Result) error {
	running, err := datadir.Holder(options.DataDir)
	// Without root's rights that is what the check is about.
	if err != nil && h.UID() == 0 {
		return err
	}
	if running != 0 {
		// Its ports are taken by the very mote this check is about.
		options.Ports = nil
	}
	results := append(hostcheck.Run(h, options), also...)
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
	if f, ok := p.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) && !p.plain() {
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
	if running != 0 && os.Geteuid() == 0 {
		fmt.Fprintf(p.stdout, "A mote runs on this data-dir (process %d): ports were not looked at.\n", running)
	}
	switch {
	case count[hostcheck.Fail] > 0 && os.Geteuid() != 0:
		fmt.Fprintln(p.stdout, "The other checks need root: nothing else was looked at.")
	case count[hostcheck.Fail] > 0:
		fmt.Fprintf(p.stdout, "%d of %d checks failed: mote does not start here yet.\n", count[hostcheck.Fail],
			len(results))
	case count[hostcheck.Warn] > 0:
		fmt.Fprintf(p.stdout, "mote can run here; %d warnings.\n", count[hostcheck.Warn])
	default:
		fmt.Fprintln(p.stdout, "mote can run here.")
	}
}
