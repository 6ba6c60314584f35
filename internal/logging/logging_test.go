package logging

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/zap"
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
	if _, err := New(Options{Output: &bytes.Buffer{}, Format: "xml"}); err == nil ||
		!strings.Contains(err.Error(), "xml") {
		t.Fatalf("error is %v, want one that names the format", err)
	}
}
