package runtimetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/recovery"
)

// Node is a test's data folder with an archive of the busybox image, and a cgroup for its pods.
type Node struct {
	Config runtime.Config
	Logs   string
	cgroup string
}

// NewNode makes a Node. At the end of the test its pods are ended, everything is removed, and a
// process or mount left behind fails the test. It skips a test that cannot run containers.
func NewNode(t *testing.T) Node {
	t.Helper()
	needContainers(t)
	base, err := os.MkdirTemp("", "mote-runtime-")
	if err != nil {
		t.Fatal(err)
	}
	n := Node{
		Config: runtime.Config{
			DataDir:        datadir.At(base).Agent().Dir(),
			RegistriesFile: filepath.Join(base, "registries.yaml"),
		},
		Logs:   filepath.Join(base, "logs"),
		cgroup: "/" + filepath.Base(base),
	}
	if err := os.MkdirAll(n.Logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Config.RegistriesFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		leftovers, err := recovery.Cleanup(context.Background(), n.Config.DataDir)
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
	WriteBusybox(t, filepath.Join(datadir.Agent(n.Config.DataDir).Images(), "busybox.tar"))
	return n
}

// needContainers skips a test where no containers can run, and says why.
func needContainers(t *testing.T) {
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
	if _, err := os.Stat(datadir.At(base).Agent().Dir()); !os.IsNotExist(err) {
		t.Errorf("data folder is left: %v", err)
	}
}

// Paths returns where the node's runtime keeps its files.
func (n Node) Paths() layout.Paths { return layout.For(n.Config.DataDir) }

// Dial connects to the node's runtime.
func (n Node) Dial(t testing.TB) CRI {
	t.Helper()
	return Dial(t, n.Paths().Socket)
}

// RunPod starts a pod in the network of the node's runtime.
func (n Node) RunPod(ctx context.Context, c CRI, name string) (Pod, error) {
	return RunPod(ctx, c, name, PodOptions{CgroupParent: n.cgroup, HostNetwork: true, LogDir: n.Logs})
}

// RunNetworkPod starts a pod with a network of its own.
func (n Node) RunNetworkPod(ctx context.Context, c CRI, name string) (Pod, error) {
	return RunPod(ctx, c, name, PodOptions{CgroupParent: n.cgroup, LogDir: n.Logs})
}

// RunOne runs a pod with a container that succeeds, and removes it.
func (n Node) RunOne(ctx context.Context, c CRI, name string) error {
	p, err := n.RunPod(ctx, c, name)
	if err != nil {
		return err
	}
	id, err := RunContainer(ctx, c, p, name, "true")
	if err != nil {
		return err
	}
	status, err := WaitState(ctx, c, id, runtimeapi.ContainerState_CONTAINER_EXITED)
	if err != nil {
		return err
	}
	if status.ExitCode != 0 {
		return fmt.Errorf("container exited with %d", status.ExitCode)
	}
	if err := c.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		return err
	}
	return c.Runtime.RemovePodSandbox(ctx, p.ID)
}

// RemovePods removes every pod, as the kubelet would those it does not know.
func RemovePods(ctx context.Context, c CRI) error {
	pods, err := c.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := c.Runtime.StopPodSandbox(ctx, p.Id); err != nil {
			return err
		}
		if err := c.Runtime.RemovePodSandbox(ctx, p.Id); err != nil {
			return err
		}
	}
	return nil
}

// Timeout returns the test's context, limited to d.
func Timeout(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// WaitFor polls until a condition holds.
func WaitFor(ctx context.Context, t testing.TB, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}

// Halve cuts a file to half its size, as a power cut can.
func Halve(t testing.TB, file string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}
