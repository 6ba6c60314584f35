package upstream

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"
	"k8s.io/klog/v2"

	"github.com/mote-dev/mote/internal/logging"
)

func newLogger(t *testing.T, out *bytes.Buffer, debug bool) *zap.Logger {
	t.Helper()
	log, err := logging.New(logging.Options{Output: out, Debug: debug})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// klog's state belongs to the process, so this test does not run in parallel.
func TestBridgeKlog_SeverityAndVerbosity(t *testing.T) {
	log := func() {
		klog.Info("plain info")
		klog.Warning("plain warning")
		klog.Errorf("plain %s", "error")
		klog.InfoS("structured info", "pod", "a")
		klog.ErrorS(errors.New("cause"), "structured error")
		klog.V(2).InfoS("verbose info")
		klog.V(4).InfoS("very verbose info")
		klog.Flush()
	}
	for _, test := range []struct {
		name          string
		debug         bool
		want, notWant []string
	}{
		{"quiet", false,
			[]string{"WARN kubernetes plain warning", "ERROR kubernetes plain error", "klog_test.go",
				"ERROR kubernetes structured error", "cause"},
			[]string{"plain info", "structured info", "verbose info"}},
		{"debug", true,
			[]string{"INFO kubernetes plain info", "structured info", "DEBUG kubernetes verbose info",
				"WARN kubernetes plain warning"},
			[]string{"very verbose info"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			quiet, err := BridgeKlog(newLogger(t, &out, test.debug).Named("kubernetes"), test.debug, noFatal(t))
			if err != nil {
				t.Fatal(err)
			}
			quiet.Started()
			t.Cleanup(klog.ClearLogger)
			log()
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("log lacks %q:\n%s", want, out.String())
				}
			}
			for _, not := range test.notWant {
				if strings.Contains(out.String(), not) {
					t.Errorf("log has %q:\n%s", not, out.String())
				}
			}
		})
	}
}

func TestBridgeKlog_ExpectedLinesOnlyInDebug(t *testing.T) {
	for _, debug := range []bool{false, true} {
		var out bytes.Buffer
		quiet, err := BridgeKlog(newLogger(t, &out, debug), debug, noFatal(t))
		if err != nil {
			t.Fatal(err)
		}
		quiet.Started()
		klog.Warning("Skipping API batch/v1beta1 because it has no resources.")
		klog.ErrorS(nil, "Something else went wrong")
		klog.Flush()
		if got := strings.Contains(out.String(), "Skipping API"); got != debug {
			t.Errorf("debug=%v: expected line written: %v", debug, got)
		}
		if !strings.Contains(out.String(), "Something else") {
			t.Errorf("debug=%v: an error that is not expected was dropped", debug)
		}
	}
}

func noFatal(t *testing.T) func(error) {
	return func(err error) { t.Errorf("the process would end: %v", err) }
}

// What upstream ends the process for is told, and the process goes on to report it: a klog.Fatal in
// a hook, and an exit after a line that says why.
func TestBridgeKlog_FatalEndsOnlyItsGoroutine(t *testing.T) {
	for _, row := range []struct {
		name string
		fail func()
		want string
	}{
		{"fatal", func() { klog.Fatalf("PostStartHook %q failed: %v", "a", "no lease") },
			`kubernetes: PostStartHook "a" failed: no lease`},
		{"fatal of a struct", func() { klog.Fatal("bad") }, "kubernetes: bad"},
		{"exit without stacks", func() { klog.Exitf("no %s", "way") }, "kubernetes: no way"},
		{"flush and exit", func() {
			klog.ErrorS(errors.New("disk"), "Failed to start")
			klog.FlushAndExit(klog.ExitFlushTimeout, 1)
		}, "kubernetes: Failed to start: disk"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			told := make(chan error, 1)
			if _, err := BridgeKlog(newLogger(t, &out, false), false, func(err error) { told <- err }); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(klog.ClearLogger)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				row.fail()
				t.Error("it went on")
			}()
			<-ended
			if err := <-told; err.Error() != row.want {
				t.Errorf("told %q, want %q", err, row.want)
			}
		})
	}
}
