package clock

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
)

// options are the paths the tests work with.
var options struct {
	harness.Options
	clockshift string
}

func TestMain(m *testing.M) {
	options.Register("clock", "clock")
	flag.StringVar(&options.clockshift, "clockshift", "../../../build/tools/clockshift",
		"test/tools/clockshift's executable")
	os.Exit(options.Main(m, &options.clockshift))
}

// eventually is harness.Eventually, and tells what took how long.
func eventually(t *testing.T, within time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	took := harness.Eventually(t, within, what, check)
	t.Logf("%s: after %v", what, took.Round(10*time.Millisecond))
}
