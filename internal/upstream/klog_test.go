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
			quiet, err := BridgeKlog(newLogger(t, &out, test.debug).Named("kubernetes"), test.debug)
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
		quiet, err := BridgeKlog(newLogger(t, &out, debug), debug)
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
