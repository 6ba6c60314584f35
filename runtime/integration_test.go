package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/runtime"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/recovery"
	"github.com/mote-dev/mote/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	runtimetest.Main()
	os.Exit(m.Run())
}

// TestRuntime_InProcess calls the CRI services as the kubelet does.
func TestRuntime_InProcess(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	n.Config.Logger = zaptest.NewLogger(t, zaptest.WrapOptions())
	r, err := runtime.New(n.Config)
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

func useContainers(ctx context.Context, n runtimetest.Node, c runtimetest.CRI) error {
	version, err := c.Runtime.Version(ctx, "v1")
	if err != nil || version.RuntimeName != "containerd" {
		return fmt.Errorf("version is %v: %w", version, err)
	}
	start := time.Now()
	p, err := n.RunPod(ctx, c, "pod")
	if err != nil {
		return err
	}
	for dir, want := range map[string]bool{n.Config.DataDir: true, n.Config.DataDir + "2": false} {
		if ours, err := runtime.OwnsLogs(n.Logs, dir); err != nil || ours != want {
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
	if _, err := c.Runtime.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: id,
		Cmd:         []string{"sh"},
		Stdin:       true,
		Stdout:      true,
	}); err != nil {
		return fmt.Errorf("prepare exec: %w", err)
	}
	if err := c.Runtime.StopContainer(ctx, id, 0); err != nil {
		return err
	}
	if _, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED); err != nil {
		return err
	}
	log, err := os.ReadFile(filepath.Join(n.Logs, "main.log"))
	if err != nil || !strings.Contains(string(log), "stdout F hello") {
		return fmt.Errorf("container's log is %q: %w", log, err)
	}
	if err := c.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		return err
	}
	return c.Runtime.RemovePodSandbox(ctx, p.ID)
}

// TestRuntime_RestartKeepsContainers stops the runtime cleanly and then by kill -9. Each time the
// next one must find the same running container.
func TestRuntime_RestartKeepsContainers(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.Config)
	t.Logf("first start took %s", child.StartTook)
	c := n.Dial(t)
	p, err := n.RunPod(ctx, c, "pod")
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
		child = runtimetest.Start(t, n.Config)
		t.Logf("start after %s took %s", how.name, child.StartTook)
		c = n.Dial(t)
		after, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_RUNNING)
		if err != nil {
			t.Fatalf("after %s: %v", how.name, err)
		}
		if after.StartedAt != before.StartedAt {
			t.Errorf("after %s the container started at %d, before at %d", how.name, after.StartedAt, before.StartedAt)
		}
		if out, _, err := c.Runtime.ExecSync(ctx, id, []string{"echo", "alive"}, 30*time.Second); err != nil ||
			string(out) != "alive\n" {
			t.Errorf("after %s exec gave %q: %v", how.name, out, err)
		}
	}
	child.Stop()
}

// TestRuntime_Reboot ends everything as a reboot does. The pods must be reported as ended, and new
// ones must run.
func TestRuntime_Reboot(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	p, err := n.RunPod(ctx, c, "pod")
	if err != nil {
		t.Fatal(err)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "main", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	child.Kill()
	if err := recovery.KillAll(ctx, n.Config.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := recovery.KillAll(ctx, n.Config.DataDir); err != nil {
		t.Fatalf("second time: %v", err)
	}
	child = runtimetest.Start(t, n.Config)
	t.Logf("start after reboot took %s", child.StartTook)
	c = n.Dial(t)
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
		t.Errorf("remove pod from before the reboot: %v", err)
	}
	if err := n.RunOne(ctx, c, "after"); err != nil {
		t.Error(err)
	}
	child.Stop()
}

// TestRuntime_FailedStart_KeepsPods has containerd fail to start for reasons that say nothing about
// its records. Pods must run on, and the next start must find them.
func TestRuntime_FailedStart_KeepsPods(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	p, err := n.RunPod(ctx, c, "pod")
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
	child.Stop()
	root, tmp := n.Paths().Root, filepath.Join(n.Paths().State, "tmp")
	for _, row := range []struct {
		name    string
		do      func() error
		undo    func() error
		message string
	}{
		{
			"read-only",
			func() error {
				return errors.Join(unix.Mount(root, root, "", unix.MS_BIND, ""),
					unix.Mount("", root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			},
			func() error { return unix.Unmount(root, unix.MNT_DETACH) },
			"read-only file system",
		},
		{
			"a file in place of a folder",
			func() error { return errors.Join(os.RemoveAll(tmp), os.WriteFile(tmp, nil, 0o600)) },
			func() error { return os.Remove(tmp) },
			"not a directory",
		},
	} {
		if err := row.do(); err != nil {
			t.Fatal(err)
		}
		_, err := runtimetest.TryStart(t, n.Config)
		if err == nil || !strings.Contains(err.Error(), row.message) {
			t.Errorf("%s: error is %v, want one about %q", row.name, err, row.message)
		}
		if err := row.undo(); err != nil {
			t.Fatal(err)
		}
		if aside, err := filepath.Glob(filepath.Join(root, "damaged-*")); err != nil || len(aside) > 0 {
			t.Errorf("%s: records were set aside: %v, %v", row.name, aside, err)
		}
		child = runtimetest.Start(t, n.Config)
		c = n.Dial(t)
		after, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_RUNNING)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		if after.StartedAt != before.StartedAt {
			t.Errorf("%s: the container started at %d, before at %d", row.name, after.StartedAt, before.StartedAt)
		}
		child.Stop()
	}
}

// cniConf is a pod network of the shape the node's own is, for the child's network namespace only.
const cniConf = `{
  "cniVersion": "1.0.0", "name": "test",
  "plugins": [
    {"type": "bridge", "bridge": "moterttest0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.222.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`

// TestRuntime_PodNetwork runs a pod with the bundled CNI plugins. The runtime starts before there
// is a network, as on a node that boots.
func TestRuntime_PodNetwork(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 120*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	if ready, err := networkReady(ctx, c); err != nil || ready {
		t.Errorf("network is ready without a configuration: %v, %v", ready, err)
	}
	conf := filepath.Join(n.Config.DataDir, "cni/conf/10-test.conflist")
	if err := os.WriteFile(conf, fmt.Appendf(nil, cniConf, filepath.Join(n.Config.DataDir, "cni/ipam")),
		0o600); err != nil {
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
	p, err := n.RunNetworkPod(ctx, c, "net")
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
	if err := recovery.KillAll(ctx, n.Config.DataDir); err != nil {
		t.Fatal(err)
	}
	child = runtimetest.Start(t, n.Config)
	c = n.Dial(t)
	// The plugins undo the network of a pod whose namespace is gone, too.
	if err := runtimetest.RemovePods(ctx, c); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(n.Config.DataDir, "cni/ipam/test/10.*"))
	if err != nil || len(left) > 0 {
		t.Errorf("addresses are still taken: %v, %v", left, err)
	}
	if _, err := n.RunNetworkPod(ctx, c, "second"); err != nil {
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

// TestRuntime_OOMKilled checks that the kernel's OOM events reach CRI.
func TestRuntime_OOMKilled(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	p, err := n.RunPod(ctx, c, "oom")
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
			Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions},
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

// TestRuntime_OtherBoot has pods run on although the state is of another boot, as in a container
// whose /run is kept. All must be cleared.
func TestRuntime_OtherBoot(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	p, err := n.RunPod(ctx, c, "old")
	if err != nil {
		t.Fatal(err)
	}
	id, err := runtimetest.RunContainer(ctx, c, p, "old", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	child.Kill()
	if err := os.WriteFile(filepath.Join(n.Config.DataDir, "runtime/boot-id"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	child = runtimetest.Start(t, n.Config)
	c = n.Dial(t)
	if _, err := runtimetest.WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED); err != nil {
		t.Error(err)
	}
	if err := n.RunOne(ctx, c, "new"); err != nil {
		t.Error(err)
	}
	child.Stop()
}

// TestCleanup_SparesForeignMounts has a volume mounted inside the data folder.
func TestCleanup_SparesForeignMounts(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	c := n.Dial(t)
	if _, err := n.RunPod(ctx, c, "pod"); err != nil {
		t.Fatal(err)
	}
	child.Kill()
	foreign := t.TempDir()
	precious := filepath.Join(foreign, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(n.Config.DataDir, "images", "disk")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(foreign, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		kept, err := recovery.Cleanup(ctx, n.Config.DataDir)
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

// TestRuntime_DataFolderOnOverlay has the data folder of somebody who starts mote in a container
// without a volume: overlayfs does not work on overlayfs, so images are copied.
func TestRuntime_DataFolderOnOverlay(t *testing.T) {
	n := runtimetest.NewNode(t)
	base, over := filepath.Dir(n.Config.DataDir), t.TempDir()
	upper, work := filepath.Join(over, "upper"), filepath.Join(over, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", base, "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", base, upper, work)); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() {
		// Before the folder is another one again.
		if _, err := recovery.Cleanup(context.Background(), n.Config.DataDir); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(base, 0); err != nil {
			t.Error(err)
		}
	})
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	if err := n.RunOne(ctx, n.Dial(t), "copied"); err != nil {
		t.Error(err)
	}
	child.Stop()
	native := filepath.Join(layout.For(n.Config.DataDir).Root, layout.Snapshotter+"native")
	copies, err := filepath.Glob(filepath.Join(native, "snapshots", "*"))
	if err != nil || len(copies) == 0 {
		t.Errorf("no image was copied: %v", err)
	}
}

// TestRuntime_NativeSnapshotter runs without overlayfs.
func TestRuntime_NativeSnapshotter(t *testing.T) {
	n := runtimetest.NewNode(t)
	n.Config.Snapshotter = "native"
	ctx := runtimetest.Timeout(t, 180*time.Second)
	child := runtimetest.Start(t, n.Config)
	if err := n.RunOne(ctx, n.Dial(t), "copied"); err != nil {
		t.Error(err)
	}
	child.Stop()
	// The same images, with another snapshotter than they were loaded with.
	n.Config.Snapshotter = "overlayfs"
	child = runtimetest.Start(t, n.Config)
	if err := n.RunOne(ctx, n.Dial(t), "overlaid"); err != nil {
		t.Error(err)
	}
	child.Stop()
}
