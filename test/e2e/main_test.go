package e2e

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/mote-dev/mote/test/sandbox"
)

// options are the paths the tests work with; all are made absolute.
var options struct {
	mote      string
	helm      string
	images    string
	podtool   string
	examples  string
	artifacts string
}

func TestMain(m *testing.M) {
	flag.StringVar(&options.mote, "mote", "", "the executable to test; without it nothing is tested, for it needs root")
	flag.StringVar(&options.helm, "helm", "", "helm's executable, built by scripts/e2e")
	flag.StringVar(&options.images, "images", "../../bin/images", "folder of image archives made by `make example-images`")
	flag.StringVar(&options.podtool, "podtool", "../../build/images/podtool", "podtool's executable, for the host outside the cluster")
	flag.StringVar(&options.examples, "examples", "../../examples", "the example applications")
	flag.StringVar(&options.artifacts, "artifacts", "../../bin/reports/e2e", "where logs of servers, and what explains failures, are put")
	flag.Parse()
	if options.mote == "" {
		os.Exit(m.Run())
	}
	for _, p := range []*string{&options.mote, &options.helm, &options.images, &options.podtool, &options.examples, &options.artifacts} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			os.Stderr.WriteString("e2e: " + err.Error() + "\n")
			os.Exit(1)
		}
		*p = abs
	}
	os.Exit(sandbox.Run(m.Run))
}

// needMote skips a test that has no executable to drive.
func needMote(t *testing.T) {
	t.Helper()
	if options.mote == "" {
		t.Skip("pass -mote with the executable to test, as `make e2e` does; it needs root")
	}
}
