package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The errors that parts of a node end with when one of the kernel's limits is reached, as their
// libraries word them.
func TestWithLimit(t *testing.T) {
	const instances, watches = "`sysctl -w fs.inotify.max_user_instances=", "`sysctl -w fs.inotify.max_user_watches="
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"containerd's network configuration",
			fmt.Errorf("load io.containerd.grpc.v1.cri: create fsnotify watcher: %w", unix.EMFILE), instances},
		{"the kubelet's statistics", os.NewSyscallError("inotify_init", unix.EMFILE), instances},
		{"a watch of cgroups",
			&os.PathError{Op: "inotify_add_watch", Path: "/sys/fs/cgroup/kubepods", Err: unix.ENOSPC}, watches},
		{"containerd's watch", fmt.Errorf("failed to watch cni conf dir: %w", unix.ENOSPC), watches},
		{"files of the whole machine", fmt.Errorf("open: %w", unix.ENFILE), "`sysctl -w fs.file-max="},
		{"a full disk", &os.PathError{Op: "write", Path: "/var/lib/mote/server/db/state.db", Err: unix.ENOSPC}, ""},
		{"another error", errors.New("inotify is tired"), ""},
		{"none", nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := WithLimit(test.err)
			if !errors.Is(err, test.err) {
				t.Fatalf("%v lost its cause", err)
			}
			if test.want == "" {
				if any(err) != any(test.err) { // the very same, not one that wraps it
					t.Errorf("%v, want it as it was", err)
				}
				return
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "/etc/sysctl.d/") {
				t.Errorf("%v, want %s", err, test.want)
			}
			if again := WithLimit(err); again.Error() != err.Error() {
				t.Errorf("said twice: %v", again)
			}
		})
	}
}

// A process without descriptors gets the same error for another reason, and other advice.
func TestWithLimit_OpenFiles(t *testing.T) {
	const child = "MOTE_TEST_OPEN_FILES"
	if os.Getenv(child) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestWithLimit_OpenFiles$")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	limit := unix.Rlimit{Cur: 32, Max: 32}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = unix.Open(os.DevNull, unix.O_RDONLY, 0)
	}
	if err := WithLimit(tryInotify(1)); err == nil || !strings.Contains(err.Error(), filesRemedy) {
		t.Errorf("error is %v, want %s", err, filesRemedy)
	}
}
