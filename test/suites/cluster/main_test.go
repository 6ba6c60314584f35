package cluster

import (
	"flag"
	"os"
	"testing"

	"github.com/mote-dev/mote/test/tools/harness"
)

// options are the paths the tests work with, and how long servers are away: continuous integration
// cuts that short.
var options struct {
	harness.Options
	etcd     string
	podtool  string
	examples string
	long     bool
}

func TestMain(m *testing.M) {
	options.Register("cluster", "e2e-hosts")
	harness.Podtool(&options.podtool)
	flag.StringVar(&options.etcd, "etcd", "", "etcd's executable, for the test of several servers")
	flag.StringVar(&options.examples, "examples", "../../../examples", "the example applications")
	options.long = os.Getenv("LONG") != ""
	os.Exit(options.Main(m, &options.podtool, &options.etcd, &options.examples))
}
