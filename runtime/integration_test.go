package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/runtime"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	runtimetest.Main()
	os.Exit(m.Run())
}

// needRoot skips what needs root, cgroups and the bundle, and says why.
func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs containers: not in -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("runs containers: needs root")
	}
	if _, err := bundle.ReadManifest(); err != nil {
		t.Skip(err)
	}
}

// node is one test's data folder, with its cgroup and everything taken away at
// the end.
type node struct {
	cfg    runtime.Config
	cgroup string
	logs   string
}

func newNode(t *testing.T) node {
	t.Helper()
	needRoot(t)
	base, err := os.MkdirTemp("", "mote-runtime-")
	if err != nil {
		t.Fatal(err)
	}
	n := node{
		cfg:    runtime.Config{DataDir: filepath.Join(base, "agent"), RegistriesFile: filepath.Join(base, "registries.yaml")},
		cgroup: "/" + filepath.Base(base),
		logs:   filepath.Join(base, "logs"),
	}
	if err := os.MkdirAll(n.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		leftovers, err := runtime.Cleanup(context.Background(), n.cfg.DataDir)
		if err != nil || len(leftovers) > 0 {
			t.Errorf("clean up: %v, left: %v", err, leftovers)
		}
		checkNothingLeft(t, base)
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup)
		for _, d := range append(dirs, "/sys/fs/cgroup"+n.cgroup) {
			if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
				t.Errorf("test's cgroup is not empty: %v", err)
			}
		}
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	runtimetest.WriteBusybox(t, filepath.Join(n.cfg.DataDir, "images", "busybox.tar"))
	return n
}

// checkNothingLeft looks for processes and mounts that name the test's folder.
func checkNothingLeft(t *testing.T, base string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, base) {
			t.Errorf("mount is left: %s", line)
		}
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range cmdlines {
		data, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(data), base) {
			t.Errorf("process is left: %s: %q", f, data)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "agent")); !os.IsNotExist(err) {
		t.Errorf("data folder is left: %v", err)
	}
}

func (n node) pod(ctx context.Context, c runtimetest.CRI, name string) (runtimetest.Pod, error) {
	return runtimetest.RunPod(ctx, c, name, runtimetest.PodOptions{CgroupParent: n.cgroup, HostNetwork: true, LogDir: n.logs})
}

func (n node) socket() string { return runtime.SocketPath(n.cfg.DataDir) }

// killPid kills a process and waits until it is gone or a zombie.
func killPid(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(n, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 5000); err != nil && !errors.Is(err, unix.EINTR) {
		t.Fatal(err)
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestRuntime_InProcess drives the CRI services as the kubelet does, by calls.
func TestRuntime_InProcess(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 180*time.Second)
	n.cfg.Logger = zaptest.NewLogger(t, zaptest.WrapOptions())
	r, err := runtime.New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- r.Run(runCtx) }()
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("runtime ended: %v", err)
	}
	t.Logf("first start took %s", time.Since(start))
	c := runtimetest.CRI{Runtime: r.RuntimeService(), Images: r.ImageService()}
	if err := useContainers(ctx, n, c); err != nil {
		t.Error(err)
	}
	stop()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("stop: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("runtime did not stop within 30 s")
	}
}

func useContainers(ctx context.Context, n node, c runtimetest.CRI) error {
	version, err := c.Runtime.Version(ctx, "v1")
	if err != nil || version.RuntimeName != "containerd" {
		return fmt.Errorf("version is %v: %w", version, err)
	}
	start := time.Now()
	p, err := n.pod(ctx, c, "pod")
	if err != nil {
		return err
	}
	for dir, want := range map[string]bool{n.cfg.DataDir: true, n.cfg.DataDir + "2": false} {
		if ours, err := runtime.OwnsLogs(n.logs, dir); err != nil || ours != want {
			return fmt.Errorf("logs are of the node in %s: %v, want %v: %w", dir, ours, want, err)
		}
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "main", "sh", "-c", "echo hello; exec sleep 1000")
	if err != nil {
		return err
	}
	fmt.Printf("pod and container started in %s\n", time.Since(start))
	out, _, err := c.Runtime.ExecSync(ctx, id, []string{"echo", "from exec"}, 30*time.Second)
	if err != nil || string(out) != "from exec\n" {
		return fmt.Errorf("exec gave %q: %w", out, err)
	}
	if _, _, err := c.Runtime.ExecSync(ctx, id, []string{"false"}, 30*time.Second); err == nil {
		return fmt.Errorf("exec of a failing command gave no error")
	}
	if _, err := c.Runtime.ContainerStatus(ctx, "no-such-container", false); err == nil {
		return fmt.Errorf("status of a container that is not there gave no error")
	}
	if _, err := c.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh"}, Stdin: true, Stdout: true}); err != nil {
		return fmt.Errorf("prepare exec: %w", err)
	}
	if err := c.Runtime.StopContainer(ctx, id, 0); err != nil {
		return err
	}
	if _, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED); err != nil {
		return err
	}
	log, err := os.ReadFile(filepath.Join(n.logs, "main.log"))
	if err != nil || !strings.Contains(string(log), "stdout F hello") {
		return fmt.Errorf("container's log is %q: %w", log, err)
	}
	if err := c.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		return err
	}
	return c.Runtime.RemovePodSandbox(ctx, p.ID)
}

// TestRuntime_RestartKeepsContainers stops the runtime cleanly and then by
// kill -9; each time the next one must find the very same running container.
func TestRuntime_RestartKeepsContainers(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.cfg)
	t.Logf("first start took %s", child.StartTook)
	c := runtimetest.Dial(t, n.socket())
	p, err := n.pod(ctx, c, "pod")
	if err != nil {
		t.Fatal(err)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "main", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	before, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_RUNNING)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []struct {
		name string
		stop func(*runtimetest.Child)
	}{
		{"stop", (*runtimetest.Child).Stop},
		{"kill", (*runtimetest.Child).Kill},
		{"stop again", (*runtimetest.Child).Stop},
	} {
		how.stop(child)
		child = runtimetest.Start(t, n.cfg)
		t.Logf("start after %s took %s", how.name, child.StartTook)
		c = runtimetest.Dial(t, n.socket())
		after, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_RUNNING)
		if err != nil {
			t.Fatalf("after %s: %v", how.name, err)
		}
		if after.StartedAt != before.StartedAt {
			t.Errorf("after %s the container started at %d, before at %d", how.name, after.StartedAt, before.StartedAt)
		}
		if out, _, err := c.Runtime.ExecSync(ctx, id, []string{"echo", "alive"}, 30*time.Second); err != nil || string(out) != "alive\n" {
			t.Errorf("after %s exec gave %q: %v", how.name, out, err)
		}
	}
	child.Stop()
}

// TestRuntime_Reboot ends everything as a reboot does and expects the pods to be
// known as ended, and new ones to run.
func TestRuntime_Reboot(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.cfg)
	c := runtimetest.Dial(t, n.socket())
	p, err := n.pod(ctx, c, "pod")
	if err != nil {
		t.Fatal(err)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "main", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	child.Kill()
	if err := runtime.KillAll(ctx, n.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := runtime.KillAll(ctx, n.cfg.DataDir); err != nil {
		t.Fatalf("second time: %v", err)
	}
	child = runtimetest.Start(t, n.cfg)
	t.Logf("start after reboot took %s", child.StartTook)
	c = runtimetest.Dial(t, n.socket())
	if _, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED); err != nil {
		t.Error(err)
	}
	status, err := c.Runtime.PodSandboxStatus(ctx, p.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	if status.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pod is %s after a reboot", status.Status.State)
	}
	if err := c.Runtime.RemovePodSandbox(ctx, p.ID); err != nil {
		t.Errorf("remove pod of before the reboot: %v", err)
	}
	if err := runOne(ctx, n, c, "after"); err != nil {
		t.Error(err)
	}
	child.Stop()
}

// runOne runs a pod with a container that ends well, and removes it.
func runOne(ctx context.Context, n node, c runtimetest.CRI, name string) error {
	p, err := n.pod(ctx, c, name)
	if err != nil {
		return err
	}
	id, err := runtimetest.RunContainer(ctx, c, p, name, "true")
	if err != nil {
		return err
	}
	status, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED)
	if err != nil {
		return err
	}
	if status.ExitCode != 0 {
		return fmt.Errorf("container ended with %d", status.ExitCode)
	}
	if err := c.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		return err
	}
	return c.Runtime.RemovePodSandbox(ctx, p.ID)
}

// cniConf is a pod network of the shape the node's own is, for the child's
// network namespace only.
const cniConf = `{
  "cniVersion": "1.0.0", "name": "test",
  "plugins": [
    {"type": "bridge", "bridge": "moterttest0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.222.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`

// TestRuntime_PodNetwork runs a pod with the bundled CNI plugins. The runtime
// starts before there is a network, as on a node that boots.
func TestRuntime_PodNetwork(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.cfg)
	c := runtimetest.Dial(t, n.socket())
	if ready, err := networkReady(ctx, c); err != nil || ready {
		t.Errorf("network is ready without a configuration: %v, %v", ready, err)
	}
	conf := filepath.Join(n.cfg.DataDir, "cni/conf/10-test.conflist")
	if err := os.WriteFile(conf, fmt.Appendf(nil, cniConf, filepath.Join(n.cfg.DataDir, "cni/ipam")), 0o600); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ready, err := networkReady(ctx, c); err != nil {
			t.Fatal(err)
		} else if ready {
			break
		}
		<-tick.C
	}
	p, err := runtimetest.RunPod(ctx, c, "net", runtimetest.PodOptions{CgroupParent: n.cgroup, LogDir: n.logs})
	if err != nil {
		t.Fatal(err)
	}
	status, err := c.Runtime.PodSandboxStatus(ctx, p.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	ip := status.Status.GetNetwork().GetIp()
	if !strings.HasPrefix(ip, "10.222.0.") {
		t.Errorf("pod's address is %q", ip)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "main", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := c.Runtime.ExecSync(ctx, id, []string{"ip", "addr"}, 30*time.Second)
	if err != nil || !strings.Contains(string(out), ip) || !strings.Contains(string(out), "LOOPBACK,UP") {
		t.Errorf("addresses in the pod are %s: %v", out, err)
	}
	child.Kill()
	if err := runtime.KillAll(ctx, n.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	child = runtimetest.Start(t, n.cfg)
	c = runtimetest.Dial(t, n.socket())
	// The plugins undo the network of a pod whose namespace is gone, too.
	if err := removeAll(ctx, c); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(n.cfg.DataDir, "cni/ipam/test/10.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("addresses are still taken: %v, %v", left, err)
	}
	if _, err := runtimetest.RunPod(ctx, c, "second", runtimetest.PodOptions{CgroupParent: n.cgroup, LogDir: n.logs}); err != nil {
		t.Error(err)
	}
	child.Kill()
}

func networkReady(ctx context.Context, c runtimetest.CRI) (bool, error) {
	resp, err := c.Runtime.Status(ctx, false)
	if err != nil {
		return false, err
	}
	for _, cond := range resp.Status.Conditions {
		if cond.Type == runtimeapi.NetworkReady {
			return cond.Status, nil
		}
	}
	return false, fmt.Errorf("there is no network condition in %v", resp.Status.Conditions)
}

// TestRuntime_OOMKilled needs the events of the kernel to reach CRI.
func TestRuntime_OOMKilled(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.cfg)
	c := runtimetest.Dial(t, n.socket())
	p, err := n.pod(ctx, c, "oom")
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.Runtime.CreateContainer(ctx, p.ID, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "oom"},
		Image:    &runtimeapi.ImageSpec{Image: runtimetest.BusyboxImage},
		// A shell variable that doubles until the limit is reached.
		Command: []string{"sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"},
		LogPath: "oom.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions},
		},
	}, p.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Runtime.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	status, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED)
	if err != nil {
		t.Fatal(err)
	}
	if status.Reason != "OOMKilled" || status.ExitCode != 137 {
		t.Errorf("container ended with %d for %q", status.ExitCode, status.Reason)
	}
	child.Stop()
}

// TestRuntime_OtherBoot has pods run on while the mark says that another boot
// wrote the state, as in a container whose /run is kept: all must be cleared.
func TestRuntime_OtherBoot(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.cfg)
	c := runtimetest.Dial(t, n.socket())
	p, err := n.pod(ctx, c, "old")
	if err != nil {
		t.Fatal(err)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "old", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	child.Kill()
	if err := os.WriteFile(filepath.Join(n.cfg.DataDir, "runtime/boot-id"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	child = runtimetest.Start(t, n.cfg)
	c = runtimetest.Dial(t, n.socket())
	if _, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED); err != nil {
		t.Error(err)
	}
	if err := runOne(ctx, n, c, "new"); err != nil {
		t.Error(err)
	}
	child.Stop()
}

// TestCleanup_SparesForeignMounts has a volume mounted inside the data folder.
func TestCleanup_SparesForeignMounts(t *testing.T) {
	n := newNode(t)
	ctx := timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.cfg)
	c := runtimetest.Dial(t, n.socket())
	if _, err := n.pod(ctx, c, "pod"); err != nil {
		t.Fatal(err)
	}
	child.Kill()
	foreign := t.TempDir()
	precious := filepath.Join(foreign, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(n.cfg.DataDir, "images", "disk")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(foreign, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		kept, err := runtime.Cleanup(ctx, n.cfg.DataDir)
		if err != nil || len(kept) != 1 || kept[0] != point {
			t.Errorf("clean-up kept %v, %v; want %s", kept, err, point)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("what was mounted is harmed: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
}

// TestRuntime_NativeSnapshotter runs where overlayfs cannot be had.
func TestRuntime_NativeSnapshotter(t *testing.T) {
	n := newNode(t)
	n.cfg.Snapshotter = "native"
	ctx := timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.cfg)
	if err := runOne(ctx, n, runtimetest.Dial(t, n.socket()), "copied"); err != nil {
		t.Error(err)
	}
	child.Stop()
	// The same images, with another snapshotter than they were loaded with.
	n.cfg.Snapshotter = "overlayfs"
	child = runtimetest.Start(t, n.cfg)
	if err := runOne(ctx, n, runtimetest.Dial(t, n.socket()), "overlaid"); err != nil {
		t.Error(err)
	}
	child.Stop()
}
