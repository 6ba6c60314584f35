package logging

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

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

// On a terminal a line is for a person: no JSON, and no colours if they are not wanted.
func TestNew_Terminal_FieldsAsWords(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, &out, Options{Terminal: true, Plain: true}).Named("store").With(zap.String("file", "/d"))
	log.Info("opened", zap.Int("revision", 7), zap.Duration("took", 1500*time.Millisecond),
		zap.Error(errors.New("no room")))
	log.Info("again")
	got := regexp.MustCompile(`(?m)^[0-9:]{8} `).ReplaceAllString(out.String(), "")
	want := "INFO store opened error=\"no room\" file=/d revision=7 took=1.5s\nINFO store again file=/d\n"
	if got != want {
		t.Errorf("lines are\n%q, want\n%q", got, want)
	}
}

func TestNew_UnknownFormat(t *testing.T) {
	if _, err := New(Options{Output: &bytes.Buffer{}, Format: "xml"}); err == nil ||
		!strings.Contains(err.Error(), "xml") {
		t.Fatalf("error is %v, want one that names the format", err)
	}
}
