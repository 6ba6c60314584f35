package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// machine is a host and the mote that runs on it, under the host's own name. The process may be
// stopped and started again.
type machine struct {
	*sandbox.Host
	*harness.Process
}

func dataDir() string { return filepath.Join(sandbox.Dir(), "data") }

// newMachine makes a host without starting mote. It goes when the test ends.
func newMachine(t *testing.T, c sandbox.HostConfig) *machine {
	t.Helper()
	h, err := sandbox.AddHost(c)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(options.Artifacts, c.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Remove(); err != nil {
			t.Error(err)
		}
	})
	return &machine{Host: h, Process: harness.NewProcess(t, "mote on "+c.Name, log)}
}

// launch starts mote and returns at once.
func (m *machine) launch(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{args[0], "--data-dir", dataDir()}, args[1:]...)
	m.Launch(t, m.Command(context.Background(), options.Mote, args...))
}

// reboot cuts the power and gives it back; mote is not started.
func (m *machine) reboot(t *testing.T) {
	t.Helper()
	if err := m.PowerCut(); err != nil {
		t.Fatal(err)
	}
	<-m.Exited()
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
}

// mote runs one command of mote's on the machine; it must succeed.
func (m *machine) mote(t *testing.T, args ...string) string {
	t.Helper()
	return harness.Output(t, m.Host, options.Mote, args...)
}

// refused runs a command of mote's that must end with code 1, soon and with one line that says why,
// which it returns. Before it may be told how far it came.
func (m *machine) refused(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := m.Command(ctx, options.Mote, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("mote %s: %v, want exit code 1:\n%s", strings.Join(args, " "), err, out)
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(l string) bool {
		return strings.Contains(l, " INFO check the host") || strings.Contains(l, " INFO unpack bundled tools") ||
			strings.Contains(l, " INFO start container runtime")
	})
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "mote: ") {
		t.Errorf("mote %s: said, instead of one line:\n%s", strings.Join(args, " "), out)
	}
	return strings.Join(lines, "\n")
}

// importImages loads archives the way a user does, into the running mote.
func (m *machine) importImages(t *testing.T) {
	t.Helper()
	m.mote(t, "image", "import", "--data-dir", dataDir(), filepath.Join(options.Images, "busybox.tar"),
		filepath.Join(options.Images, "podtool.tar"))
}

// write puts a file on the machine's disk and returns its path there.
func (m *machine) write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(sandbox.Dir(), name)
	if err := os.WriteFile(m.Path(path), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inPod runs a program of the sandbox in the network of one of the machine's pods: what the pod
// sees, without a server's help.
func (m *machine) inPod(ctx context.Context, pid int, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter",
		append([]string{"--target", fmt.Sprint(pid), "--net", name}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("in a pod on %s: %s %s: %w: %s", m.Name(), name, strings.Join(args, " "), err,
			strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// echoes and sleepers are the processes of the test's pods on the machine.
func (m *machine) echoes() []int   { return m.sorted("/bin/podtool serve") }
func (m *machine) sleepers() []int { return m.sorted("sleep 100000") }

func (m *machine) sorted(command string) []int {
	pids := m.Processes(command)
	slices.Sort(pids)
	return pids
}
