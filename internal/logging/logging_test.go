package logging

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"
	"k8s.io/klog/v2"
)

func newLogger(t *testing.T, out *bytes.Buffer, o Options) *zap.Logger {
	t.Helper()
	o.Output = out
	log, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func TestNew_Formats(t *testing.T) {
	for _, test := range []struct {
		name    string
		options Options
		want    []string
	}{
		{"text", Options{}, []string{" INFO store opened ", `{"revision": 7}`}},
		{"terminal", Options{Terminal: true}, []string{"\x1b[", "INFO"}},
		{"json", Options{Format: FormatJSON}, []string{`"level":"info"`, `"part":"store"`, `"revision":7`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			newLogger(t, &out, test.options).Named("store").Info("opened", zap.Int("revision", 7))
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("line %q lacks %q", out.String(), want)
				}
			}
			if n := strings.Count(out.String(), "\n"); n != 1 {
				t.Errorf("%d lines, want 1: %q", n, out.String())
			}
		})
	}
}

func TestNew_UnknownFormat(t *testing.T) {
	if _, err := New(Options{Output: &bytes.Buffer{}, Format: "xml"}); err == nil || !strings.Contains(err.Error(), "xml") {
		t.Fatalf("error is %v, want one that names the format", err)
	}
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
			[]string{"WARN kubernetes plain warning", "ERROR kubernetes plain error", "logging_test.go", "ERROR kubernetes structured error", "cause"},
			[]string{"plain info", "structured info", "verbose info"}},
		{"debug", true,
			[]string{"INFO kubernetes plain info", "structured info", "DEBUG kubernetes verbose info", "WARN kubernetes plain warning"},
			[]string{"very verbose info"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			quiet, err := BridgeKlog(newLogger(t, &out, Options{Debug: test.debug}).Named("kubernetes"), test.debug)
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
		log, err := New(Options{Output: &out, Debug: debug})
		if err != nil {
			t.Fatal(err)
		}
		quiet, err := BridgeKlog(log, debug)
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
