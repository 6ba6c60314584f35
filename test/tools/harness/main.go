package harness

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// Options are the paths that every suite works with. Main makes them absolute.
type Options struct {
	Mote      string // the executable; empty leaves out what drives it
	Images    string // folder of image archives
	Artifacts string // folder for logs, and for what explains failures; Main makes it

	suite, target string
}

// Register makes flags of the options. The suite's name is that of its folder of artifacts; the
// target is make's that runs it.
func (o *Options) Register(suite, target string) {
	o.suite, o.target = suite, target
	flag.StringVar(&o.Mote, "mote", "", "the executable to test; without it nothing is tested, for it needs root")
	flag.StringVar(&o.Images, "images", "../../../bin/images", "folder of image archives made by `make example-images`")
	flag.StringVar(&o.Artifacts, "artifacts", "../../../bin/reports/"+suite,
		"where logs of servers and agents, and what explains failures, are put")
}

// Podtool makes a flag of the path of podtool's executable, for suites with hosts outside the
// cluster.
func Podtool(path *string) {
	flag.StringVar(path, "podtool", "../../../build/images/podtool",
		"podtool's executable, for hosts outside the cluster")
}

// Main is a suite's TestMain, but for its flags, which are registered and not yet parsed: it runs
// the tests in a sandbox and returns the exit code. The paths are the suite's own; like the
// options' they are made absolute, as what is tested has another working folder, and one that was
// given must be there.
func (o *Options) Main(m *testing.M, paths ...*string) int {
	flag.Parse()
	if o.Mote == "" {
		return m.Run()
	}
	if err := o.prepare(paths); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", o.suite, err)
		return 1
	}
	return sandbox.Run(m.Run)
}

func (o *Options) prepare(paths []*string) error {
	paths = append(paths, &o.Mote, &o.Images, &o.Artifacts)
	if err := sandbox.Absolute(paths...); err != nil {
		return err
	}
	if err := os.MkdirAll(o.Artifacts, 0o755); err != nil {
		return fmt.Errorf("make folder of artifacts: %w", err)
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		if _, err := os.Stat(*p); err != nil {
			return fmt.Errorf("find what the tests need: %w", err)
		}
	}
	return nil
}

// NeedMote skips a test that has no executable to drive.
func (o *Options) NeedMote(t *testing.T) {
	t.Helper()
	if o.Mote == "" {
		t.Skipf("pass -mote with the executable to test, as `make %s` does; it needs root", o.target)
	}
}
