package recovery

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
)

// startShim starts a process that by its arguments is a shim of the containerd at socket. It runs
// setUp in a mount namespace of its own and then waits to be killed.
func startShim(t *testing.T, socket, dir, setUp string) *exec.Cmd {
	t.Helper()
	cmd := &exec.Cmd{
		Path: "/bin/sh",
		Args: []string{"/some/where/" + bundle.Shim, "-e", "-c", setUp + "\necho ready; read _", "sh",
			"-namespace", "k8s.io", "-address", socket},
		Dir:         dir,
		Stderr:      os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true},
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the shim did not start: %v", err)
	}
	return cmd
}

// A process is a data folder's by the folder that it uses, never by the path it was given: a mote
// in a container has the same path, and a link makes two paths of one folder.
func TestFindOurs_ByTheFolderNotByThePath(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces: needs root")
	}
	base := t.TempDir()
	data, other, link := filepath.Join(base, "data"), filepath.Join(base, "other"), filepath.Join(base, "link")
	p := layout.For(filepath.Join(data, "agent"))
	socketBelow := func(dir string) string { return layout.For(filepath.Join(dir, "agent")).Socket }
	// What a process in another mount namespace was told and sees.
	elsewhere := filepath.Join(base, "elsewhere")
	task := filepath.Join("io.containerd.runtime.v2.task", "k8s.io", "id")
	for _, d := range []string{p.Root, filepath.Join(other, "agent", "containerd"), elsewhere,
		filepath.Join(p.State, task), filepath.Join(base, "state", task)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.Run) })
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	var foreign []*exec.Cmd
	for _, test := range []struct {
		name, socket, dir, setUp string
		ours                     bool
	}{
		{"the path", socketBelow(data), "/", "", true},
		{"through a link", socketBelow(link), "/", "", true},
		{"with a way round", socketBelow(data + "/../data"), "/", "", true},
		{"another folder", socketBelow(other), "/", "", false},
		{"of another runtime", "/run/containerd/containerd.sock", "/", "", false},
		{"the path in a container", socketBelow(data), "/", "mount --bind " + other + " " + data, false},
		{"the path in a container, through a link", socketBelow(link), "/",
			"mount --bind " + other + " " + data, false},
		{"another path in a container, the folder mounted there", socketBelow(elsewhere), "/",
			"mount --bind " + data + " " + elsewhere, true},
		{"the path in a container, and nothing there", socketBelow(data), "/", "mount -t tmpfs none " + data, false},
		{"nothing there, working in our task's folder", socketBelow(filepath.Join(base, "gone")),
			filepath.Join(p.State, task), "", true},
		{"nothing there, working in another's task's folder", socketBelow(filepath.Join(base, "gone")),
			filepath.Join(base, "state", task), "", false},
	} {
		cmd := startShim(t, test.socket, test.dir, test.setUp)
		ours, err := findOurs(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, is := ours[cmd.Process.Pid]; is != test.ours {
			t.Errorf("%s: ours is %v, want %v", test.name, is, test.ours)
		}
		if !test.ours {
			foreign = append(foreign, cmd)
		}
	}
	// The same holds for all that end pods: uninstalling, and a start that repairs.
	if err := KillAll(t.Context(), filepath.Join(data, "agent")); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range foreign {
		if _, running := readProcess(cmd.Process.Pid); !running {
			t.Errorf("killed a process that is not ours: %q", cmd.Args)
		}
	}
	if ours, err := findOurs(p); err != nil || len(ours) != 0 {
		t.Errorf("ours after all were killed: %v, %v", ours, err)
	}
}

// Where nothing is, no process can use it, whatever its arguments say.
func TestFindOurs_WithoutADataFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mount namespaces: needs root")
	}
	agent := filepath.Join(t.TempDir(), "data", "agent")
	p := layout.For(agent)
	inContainer := filepath.Dir(filepath.Dir(agent))
	cmd := startShim(t, p.Socket, "/", "mount -t tmpfs none "+inContainer+"; mkdir -p "+p.Root)
	if err := KillAll(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	if _, running := readProcess(cmd.Process.Pid); !running {
		t.Error("killed the shim of a container's mote on a machine without one")
	}
}

// Another node's pods in the cgroups of ours are seen before a kubelet kills them, whatever their
// containerd is; our own pods, and containers that are no pods, are none.
func TestOtherNode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups and mount namespaces: needs root")
	}
	base := t.TempDir()
	data, other := filepath.Join(base, "data"), filepath.Join(base, "other")
	p, theirs := layout.For(filepath.Join(data, "agent")), layout.For(filepath.Join(other, "agent"))
	for _, d := range []string{p.Root, theirs.Root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := "/mote-test-" + filepath.Base(base)
	inPods := inCgroup(t, root, "kubepods/burstable/pod1")
	elsewhere := inCgroup(t, root, "docker/1")
	for _, test := range []struct {
		name, socket, setUp string
		want                bool
	}{
		{"ours", p.Socket, inPods, false},
		{"another data folder's", theirs.Socket, inPods, true},
		{"one in a container with our path", p.Socket, "mount --bind " + other + " " + data + "; " + inPods, true},
		{"containers that are no pods", theirs.Socket, elsewhere, false},
		{"of a folder that is gone", filepath.Join(base, "gone", "containerd.sock"), inPods, false},
	} {
		cmd := startShim(t, test.socket, "/", test.setUp)
		shim, _, err := OtherNode(filepath.Join(data, "agent"), root)
		if err != nil || (shim == cmd.Process.Pid) != test.want || !test.want && shim != 0 {
			t.Errorf("%s: found %d of %d, %v; want it found: %v", test.name, shim, cmd.Process.Pid, err, test.want)
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}
}

// inCgroup makes a cgroup and returns the commands by which a shell starts a process in it.
func inCgroup(t *testing.T, root, name string) string {
	t.Helper()
	mount := "/sys/fs/cgroup"
	for _, m := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(m); err == nil {
			mount = m // version 1
			break
		}
	}
	dir := filepath.Join(mount, root, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for syscall.Rmdir(dir) == syscall.EBUSY && time.Now().Before(deadline) {
			runtime.Gosched() // a process that was killed is still leaving
		}
		for dir = filepath.Dir(dir); dir != mount && syscall.Rmdir(dir) == nil; dir = filepath.Dir(dir) {
		}
	})
	return "sleep 1000 & echo $! > " + dir + "/cgroup.procs"
}
