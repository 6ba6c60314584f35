package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// failsWithin is how soon a start has ended after something in it failed.
const failsWithin = 10 * time.Second

// attempt is one start that does not become ready.
type attempt struct {
	cmd *exec.Cmd
	out bytes.Buffer
	dir string
}

func startAttempt(t *testing.T, role string, args ...string) *attempt {
	t.Helper()
	dir := filepath.Join(sandbox.Dir(), "fails")
	a := &attempt{dir: filepath.Join(dir, "data")}
	args = append([]string{role, "--data-dir", a.dir, "--node-name", "fails", "--kubelet-arg", "port=10260"}, args...)
	if role == "server" {
		args = append(args, "--kubeconfig-output", filepath.Join(dir, "kubeconfig"), "--https-listen-port", "16445")
	}
	a.cmd = exec.CommandContext(t.Context(), options.Mote, args...)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.out
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), options.Mote, "uninstall", "--yes", "--data-dir",
			a.dir).CombinedOutput(); err != nil {
			t.Logf("uninstall: %v: %s", err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return a
}

// ended waits for the end and returns the exit code and the last line.
func (a *attempt) ended() (code int, last string) {
	_ = a.cmd.Wait() // the code says it
	lines := strings.Split(strings.TrimSpace(a.out.String()), "\n")
	return a.cmd.ProcessState.ExitCode(), lines[len(lines)-1]
}

// A fault that no preflight can see ends a start soon, with exit code 1 and the first cause as the
// last line, whichever part meets it and whatever else falls over then.
func TestServer_FailsLate_EndsWithTheFirstCause(t *testing.T) {
	options.NeedMote(t)
	file := func(path string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, row := range []struct {
		name  string
		fault func(t *testing.T, dataDir string)
		want  string
	}{
		{"tools", file("bin"), "mote: container runtime: create folder for tools"},
		{"container runtime", file("agent/containerd"), "mote: container runtime: create folder"},
		{"kubelet", file("agent/kubelet"), "mote: kubelet: create container manager"},
		{"kubelet's pods", file("agent/kubelet/pods"), "mote: kubelet: start kubelet"},
		{"DNS", func(t *testing.T, _ string) {
			taken, err := net.ListenPacket("udp", "0.0.0.0:53")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = taken.Close() })
		}, "mote: dns: listen on 10.43.0.10:53"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.fault(t, filepath.Join(sandbox.Dir(), "fails", "data"))
			begin := time.Now()
			a := startAttempt(t, "server")
			code, last := a.ended()
			harness.Promised(t, "a failing start ended", time.Since(begin), 2*failsWithin)
			if code != 1 || !strings.HasPrefix(last, "mote: ") || !strings.Contains(last, row.want) {
				t.Errorf("ended with code %d and %q, want %q\n%s", code, last, row.want, harness.End(a.out.String()))
			}
		})
	}
}

// Being asked to stop is no failure, whatever a start is doing just then.
func TestStart_SIGTERM_ExitsWithZero(t *testing.T) {
	options.NeedMote(t)
	for role, args := range map[string][]string{
		"server": nil,
		// Nobody answers there, so it waits to join.
		"agent": {"--server", "https://127.0.0.1:1", "--token", "abcdef.0123456789abcdef"},
	} {
		for _, after := range []time.Duration{30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond,
			700 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second} {
			t.Run(fmt.Sprint(role, " after ", after), func(t *testing.T) {
				a := startAttempt(t, role, args...)
				// The moment is what is tested: there is nothing to wait for.
				time.Sleep(after)
				if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				code, last := a.ended()
				harness.Promised(t, "a start ended by SIGTERM", time.Since(begin), failsWithin)
				if code != 0 {
					t.Errorf("ended with code %d and %q\n%s", code, last, harness.End(a.out.String()))
				}
			})
		}
	}
}
