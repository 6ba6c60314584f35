package e2e

import (
	"flag"
	"os"
	"testing"

	"github.com/mote-dev/mote/test/tools/harness"
)

// options are the paths the tests work with.
var options struct {
	harness.Options
	helm     string
	podtool  string
	examples string
}

func TestMain(m *testing.M) {
	options.Register("e2e", "e2e")
	harness.Podtool(&options.podtool)
	flag.StringVar(&options.helm, "helm", "", "helm's executable, built by scripts/e2e")
	flag.StringVar(&options.examples, "examples", "../../../examples", "the example applications")
	os.Exit(options.Main(m, &options.podtool, &options.helm, &options.examples))
}
