package measure

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// Settings are what each command that measures mote is told.
type Settings struct {
	Mote   string        // the executable
	Logs   string        // folder for logs
	Args   string        // more arguments for mote server, separated by spaces
	Settle time.Duration // how long a cluster is left alone before it is watched
	Span   time.Duration // how long it is watched

	command string
}

// Register makes flags of the settings. The command's name is that of its folder of logs,
// bench-NAME.
func (s *Settings) Register(command string) {
	s.command = command
	flag.StringVar(&s.Mote, "mote", "bin/mote", "the executable to measure")
	flag.StringVar(&s.Logs, "logs", "bin/reports/bench-"+command, "folder the logs are put in")
	flag.StringVar(&s.Args, "args", "", "more arguments for mote server, separated by spaces")
	flag.DurationVar(&s.Settle, "settle", time.Minute, "how long to leave the cluster alone before it is watched")
	flag.DurationVar(&s.Span, "span", time.Minute, "how long to watch it")
}

// Main is a command's main, but for its flags, which are registered and not yet parsed: it measures
// in a sandbox and returns the exit code. The paths are the command's own; like the settings' they
// are made absolute.
func (s *Settings) Main(run func(context.Context) error, paths ...*string) int {
	flag.Parse()
	if err := sandbox.Absolute(append(paths, &s.Mote, &s.Logs)...); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", s.command, err)
		return 1
	}
	return sandbox.RunCommand(s.command, run)
}

// Mote is a cluster that is one `mote server`.
type Mote struct {
	*Cluster
	Data string // its data folder

	settings Settings
}

// NewMote returns mote, not started, under the name that its figures and its log have.
func NewMote(s Settings, name string) Mote {
	kubeconfig := filepath.Join(sandbox.Dir(), "kubeconfig")
	return Mote{
		Cluster: &Cluster{
			Name:       name,
			Kubeconfig: kubeconfig,
			Logs:       s.Logs + "/",
			Kubectl:    Tool{Path: s.Mote, Name: s.Mote, Args: []string{"kubectl", "--kubeconfig", kubeconfig}},
		},
		Data: filepath.Join(sandbox.Dir(), "data"), settings: s,
	}
}

// StartServer starts mote with these arguments and those of the settings.
func (m Mote) StartServer(ctx context.Context, args ...string) error {
	args = append([]string{"server", "--data-dir", m.Data, "--kubeconfig-output", m.Kubeconfig}, args...)
	return m.Start(ctx, m.Name, m.settings.Mote, append(args, strings.Fields(m.settings.Args)...)...)
}

// Command runs one command of mote's and returns what it says.
func (m Mote) Command(ctx context.Context, args ...string) (string, error) {
	return Tool{Path: m.settings.Mote, Name: m.settings.Mote}.Run(ctx, nil, args...)
}
