package recovery_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/runtimetest"
)

// damage is one thing that a power cut or a disk may have done while no mote ran.
type damage struct {
	name string
	// do harms the data folder; shims and containers may still run.
	do func(t *testing.T, n runtimetest.Node, root string)
	// podSurvives: pods keep running unless their own records are damaged.
	podSurvives bool
}

func overwrite(t *testing.T, file string, at int64, size int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, size), at); err != nil {
		t.Fatal(err)
	}
}

// largest returns the largest blob, which is a layer.
func largest(t *testing.T, root string) string {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(root, "io.containerd.content.v1.content/blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	var file string
	var size int64
	for _, b := range blobs {
		if info, err := os.Stat(b); err == nil && info.Size() > size {
			file, size = b, info.Size()
		}
	}
	if file == "" {
		t.Fatal("there is no content")
	}
	return file
}

func remove(t *testing.T, pattern string) {
	t.Helper()
	matches, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(matches) == 0 {
		t.Fatalf("nothing is named %s", pattern)
	}
	for _, m := range matches {
		if err := os.RemoveAll(m); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	snapshotDB = "io.containerd.snapshotter.v1.overlayfs/metadata.db"
)

var damages = []damage{
	{name: "nothing", podSurvives: true, do: func(*testing.T, runtimetest.Node, string) {}},
	{name: "metadata cut in half", do: func(t *testing.T, _ runtimetest.Node, root string) {
		runtimetest.Halve(t, filepath.Join(root, layout.MetadataDB))
	}},
	{name: "metadata empty", do: func(t *testing.T, _ runtimetest.Node, root string) {
		if err := os.Truncate(filepath.Join(root, layout.MetadataDB), 0); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "metadata zeroed", do: func(t *testing.T, _ runtimetest.Node, root string) {
		info, err := os.Stat(filepath.Join(root, layout.MetadataDB))
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, filepath.Join(root, layout.MetadataDB), 0, int(info.Size()))
	}},
	{name: "metadata without its inner pages", do: func(t *testing.T, _ runtimetest.Node, root string) {
		overwrite(t, filepath.Join(root, layout.MetadataDB), 2*4096, 8*4096)
	}},
	{name: "metadata gone",
		do: func(t *testing.T, _ runtimetest.Node, root string) { remove(t, filepath.Join(root, layout.MetadataDB)) }},
	{name: "snapshot records cut in half", do: func(t *testing.T, _ runtimetest.Node, root string) {
		runtimetest.Halve(t, filepath.Join(root, snapshotDB))
	}},
	{name: "snapshots gone", do: func(t *testing.T, _ runtimetest.Node, root string) {
		remove(t, filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots/*"))
	}},
	{name: "writable layer gone", podSurvives: true, do: func(t *testing.T, _ runtimetest.Node, root string) {
		dirs, err := filepath.Glob(filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots/*"))
		if err != nil {
			t.Fatal(err)
		}
		newest := 0
		for _, d := range dirs {
			if id, err := strconv.Atoi(filepath.Base(d)); err == nil {
				newest = max(newest, id)
			}
		}
		remove(t, filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots", strconv.Itoa(newest)))
	}},
	{name: "layer damaged", podSurvives: true,
		do: func(t *testing.T, _ runtimetest.Node, root string) { overwrite(t, largest(t, root), 1000, 64) }},
	{name: "layer cut", podSurvives: true,
		do: func(t *testing.T, _ runtimetest.Node, root string) { runtimetest.Halve(t, largest(t, root)) }},
	{name: "all content gone", podSurvives: true, do: func(t *testing.T, _ runtimetest.Node, root string) {
		remove(t, filepath.Join(root, "io.containerd.content.v1.content/blobs/sha256/*"))
	}},
	{name: "half-written content", podSurvives: true, do: func(t *testing.T, _ runtimetest.Node, root string) {
		dir := filepath.Join(root, "io.containerd.content.v1.content/ingest/abc")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "data"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "container records gone", do: func(t *testing.T, _ runtimetest.Node, root string) {
		remove(t, filepath.Join(root, "io.containerd.grpc.v1.cri/containers/*"))
	}},
	{name: "pod records gone", podSurvives: true, do: func(t *testing.T, _ runtimetest.Node, root string) {
		remove(t, filepath.Join(root, "io.containerd.grpc.v1.cri/sandboxes/*"))
	}},
	{name: "shims' sockets gone",
		do: func(t *testing.T, n runtimetest.Node, _ string) { remove(t, filepath.Join(n.Paths().Run, "s", "*")) }},
	{name: "pods killed, sockets left", do: func(t *testing.T, n runtimetest.Node, _ string) { killShims(t, n) }},
	{name: "bundles of containers emptied", do: func(t *testing.T, n runtimetest.Node, _ string) {
		killShims(t, n)
		remove(t, filepath.Join(n.Paths().Run, "state/io.containerd.runtime.v2.task/k8s.io/*/*.json"))
	}},
	{name: "a tool cut", podSurvives: true, do: func(t *testing.T, n runtimetest.Node, _ string) {
		runtimetest.Halve(t, filepath.Join(filepath.Dir(n.Config.DataDir), "bin/current/runc"))
	}},
	{name: "a tool damaged", podSurvives: true, do: func(t *testing.T, n runtimetest.Node, _ string) {
		overwrite(t, filepath.Join(filepath.Dir(n.Config.DataDir), "bin/current/runc"), 100000, 64)
	}},
	{name: "tools gone", podSurvives: true, do: func(t *testing.T, n runtimetest.Node, _ string) {
		remove(t, filepath.Join(filepath.Dir(n.Config.DataDir), "bin"))
	}},
	{name: "records of archives garbled", podSurvives: true, do: func(t *testing.T, n runtimetest.Node, _ string) {
		files, err := filepath.Glob(filepath.Join(n.Config.DataDir, "runtime/loaded/*"))
		if err != nil || len(files) == 0 {
			t.Fatal("no records", err)
		}
		for _, f := range files {
			if err := os.WriteFile(f, []byte{0, 0, 0}, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}},
}

// TestRuntime_Damage damages the data folder in one way after another, each time after a crash with
// a pod running. The next start must succeed by itself, run pods, and still have the image.
func TestRuntime_Damage(t *testing.T) {
	n := runtimetest.NewNode(t)
	root := filepath.Join(n.Config.DataDir, "containerd")
	child := runtimetest.Start(t, n.Config)
	for i, d := range damages {
		name := strings.ReplaceAll(d.name, " ", "-")
		ok := t.Run(d.name, func(t *testing.T) {
			ctx := runtimetest.Timeout(t, 180*time.Second)
			c := n.Dial(t)
			p, err := n.RunPod(ctx, c, "before-"+name)
			if err != nil {
				t.Fatal(err)
			}
			id, err := runtimetest.RunContainer(ctx, c, p, name, "sleep", "1000")
			if err != nil {
				t.Fatal(err)
			}
			// Right after its start the process is still runc, which does not survive damage to its
			// own file.
			if _, _, err := c.Runtime.ExecSync(ctx, id,
				[]string{"sh", "-c", "until grep -q ^sleep /proc/1/cmdline; do :; done"}, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			child.Kill()
			d.do(t, n, root)
			next, err := runtimetest.TryStart(t, n.Config)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("start took %s", next.StartTook)
			c = n.Dial(t)
			checkSurvivor(ctx, t, c, id, d.podSurvives)
			if err := n.RunOne(ctx, c, "after-"+name); err != nil {
				t.Error(err)
			}
			checkPinned(ctx, t, c)
			checkContent(ctx, t, root)
			if err := runtimetest.RemovePods(ctx, c); err != nil {
				t.Error(err)
			}
			next.Kill()
		})
		if !ok {
			t.Fatalf("stopping after damage %d", i)
		}
		child.Kill()
		child = runtimetest.Start(t, n.Config)
	}
	child.Stop()
}

func checkSurvivor(ctx context.Context, t *testing.T, c runtimetest.CRI, id string, want bool) {
	t.Helper()
	resp, err := c.Runtime.ContainerStatus(ctx, id, false)
	running := err == nil && resp.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	if running != want {
		t.Errorf("container from before the damage runs: %v, want %v (%v, %v)", running, want,
			resp.GetStatus().GetState(), err)
	}
}

// checkPinned checks that the imported and the bundled image exist, and that the kubelet may not
// remove them.
func checkPinned(ctx context.Context, t *testing.T, c runtimetest.CRI) {
	t.Helper()
	list, err := c.Images.ListImages(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 {
		t.Errorf("there are %d images, want 2: %v", len(list), list)
	}
	for _, img := range list {
		if !img.Pinned {
			t.Errorf("image %v is not pinned", img.RepoTags)
		}
	}
}

// checkContent waits until every blob matches its digest, and checks that only a few sets of
// damaged files are kept.
func checkContent(ctx context.Context, t *testing.T, root string) {
	t.Helper()
	// A manifest, a configuration and a layer for each of two images.
	runtimetest.WaitFor(ctx, t, func() bool {
		blobs, err := filepath.Glob(filepath.Join(root, "io.containerd.content.v1.content/blobs/sha256/*"))
		return err == nil && len(blobs) >= 6 && !slices.ContainsFunc(blobs, func(b string) bool {
			data, err := os.ReadFile(b)
			sum := sha256.Sum256(data)
			return err != nil || hex.EncodeToString(sum[:]) != filepath.Base(b)
		})
	})
	aside, err := filepath.Glob(filepath.Join(root, "damaged-*"))
	if err != nil || len(aside) > 3 {
		t.Errorf("%d folders of damaged files are kept: %v", len(aside), err)
	}
}

// killShims kills the test's shims alone, leaving their sockets and containers.
func killShims(t *testing.T, n runtimetest.Node) {
	t.Helper()
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, f := range cmdlines {
		data, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(data), "containerd-shim-runc-v2") ||
			!strings.Contains(string(data), n.Paths().Socket) {
			continue
		}
		killPid(t, filepath.Base(filepath.Dir(f)))
		killed++
	}
	if killed == 0 {
		t.Fatal("found no shim to kill")
	}
}

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
