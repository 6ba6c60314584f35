package cmd

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/store"
)

func TestTerminalUI_Screen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		ui := newTerminalUI(&out, false, func() int { return 60 })
		done := ui.Phase("start API server")
		other := ui.Phase("start container runtime")
		ui.Progress("unpack", "bundled tools", 1e6, 4e6)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		fmt.Fprint(ui, "a log line\n")
		done(nil)
		other(errors.New("no"))
		ui.Ready(Ready{
			Took:        2500 * time.Millisecond,
			NodeName:    "n1",
			URL:         "https://192.0.2.7:6443",
			Kubeconfig:  "/etc/mote/kubeconfig.yaml",
			JoinCommand: "mote agent --server …",
		})
		ui.close()

		raw := out.String()
		if !strings.Contains(raw, "⠙ start API server, start container runtime: unpack bundled\r") {
			t.Errorf("the status line never turned or is not cut at the width:\n%q", raw)
		}
		screen := render(raw)
		want := "a log line\n✓ start API server 1.5 s\n✗ start container runtime 1.5 s\n\nmote is ready after 2.5 s\n" +
			"  API server  https://192.0.2.7:6443\n  node        n1\n  kubeconfig  /etc/mote/kubeconfig.yaml\n  try         mote kubectl get nodes\n" +
			"  join        mote agent --server …\nStop it with Ctrl-C; pods run on.\n"
		if screen != want {
			t.Errorf("screen is\n%s\nwant\n%s", screen, want)
		}
	})
}

func TestTerminalUI_NoColor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := program{lookupEnv: func(name string) (string, bool) { return "1", name == "NO_COLOR" }}
		ui := newTerminalUI(&out, p.plain(), func() int { return 60 })
		ui.Phase("start API server")(nil)
		ui.Phase("start container runtime")(errors.New("no"))
		ui.Ready(Ready{URL: "https://192.0.2.7:6443"})
		ui.close()
		// What moves the cursor is no colour.
		if colour := regexp.MustCompile(`\x1b\[[0-9;]*m`).FindString(out.String()); colour != "" {
			t.Errorf("the screen has the colour %q:\n%q", colour, out.String())
		}
	})
	for _, env := range []map[string]string{{}, {"NO_COLOR": ""}, {"TERM": "xterm"}} {
		p := program{lookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
		if p.plain() {
			t.Errorf("%v: no colours", env)
		}
	}
}

// render does what a terminal does with the few codes the UI uses.
func render(raw string) string {
	var lines []string
	for line := range strings.SplitSeq(raw, "\n") {
		if i := strings.LastIndex(line, "\r\x1b[K"); i >= 0 {
			line = line[i+len("\r\x1b[K"):]
		}
		for _, code := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m"} {
			line = strings.ReplaceAll(line, code, "")
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestLineUI_Lines(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	ui := newLineUI(zap.New(core))
	now := time.Unix(0, 0)
	ui.now = func() time.Time { return now }
	done := ui.Phase("start API server")
	for range 20 {
		ui.Progress("import", "a.tar", 1e6, 9e6)
		now = now.Add(time.Second)
	}
	ui.Progress("import", "a.tar", 9e6, 9e6)
	done(nil)
	ui.Ready(Ready{Took: time.Second, URL: "https://192.0.2.7:6443", Kubeconfig: "/k"})
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Message)
	}
	// Every five seconds, and the end.
	want := "import a.tar|import a.tar|import a.tar|import a.tar|start API server: done|mote is ready"
	if strings.Join(got, "|") != want {
		t.Errorf("lines are %q", got)
	}
	if m := logs.FilterMessage("mote is ready").All()[0].ContextMap(); m["kubeconfig"] != "/k" || m["url"] == nil ||
		m["node"] != nil {
		t.Errorf("ready has %v", m)
	}
}

func TestFaultLines(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want []string
	}{
		{"plain", errors.New("one"), []string{"one"}},
		{"joined", errors.Join(errors.New("one"), errors.Join(errors.New("two"), errors.New("one"))),
			[]string{"one", "two"}},
		{"several lines", errors.New("one\n  two"), []string{"one two"}},
		{"wrapped join stays whole", fmt.Errorf("start: %w", errors.Join(errors.New("one"), errors.New("two"))),
			[]string{"start: one two"}},
		{"damaged store", fmt.Errorf("open store /d/state.db: %w", store.ErrDamaged),
			[]string{
				"open store /d/state.db: store file is damaged: restore the newest snapshot with `mote snapshot restore`; `mote snapshot list` shows them"}},
		{"newer store", fmt.Errorf("open store /d: %w", store.ErrNewer),
			[]string{
				"open store /d: store file was written by a newer mote: use the version of mote that wrote it, or a newer one"}},
		{"damaged key", fmt.Errorf("open /d/ca.crt: %w", pki.ErrDamaged),
			[]string{
				"open /d/ca.crt: damaged certificate or key: put the file back from a backup; if there is none, remove it and its key for new ones: what was signed with it is then no longer trusted"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := errorLines(test.err)
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.want) {
				t.Errorf("lines are %q, want %q", got, test.want)
			}
		})
	}
}
