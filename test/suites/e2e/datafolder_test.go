package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// TestDataFolder_ALinkToOverlay has a data folder that is a link, to a file system on which
// overlayfs does not work, as that of a container. It is started through the link, then by the
// folder's own path, and uninstalled through the link while it runs. An uninstall in a container,
// where the same path is another folder, must leave its pods alone.
func TestDataFolder_ALinkToOverlay(t *testing.T) {
	options.NeedMote(t)
	before := snapshot(t)
	t.Cleanup(func() {
		if err := sandbox.PowerCut(before); err != nil {
			t.Error(err)
		}
	})
	c := newCluster(t, "linked", 6843)
	link, dir := c.dataDir, filepath.Dir(c.dataDir)
	disk := filepath.Join(dir, "disk")
	target := filepath.Join(disk, "mote")
	for _, name := range []string{"lower", "upper", "work", "disk"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("overlay", disk, "overlay", 0,
		fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	if said := c.Tail(100); !strings.Contains(said, "images are copied for each container") {
		t.Errorf("did not warn that images are copied: %s", said)
	}
	c.importImages(t, "podtool")
	s := c.namespace(t)
	s.apply(toolPod("web"))
	s.ready("web")
	shims := shimPids()

	c.Stop(t)
	// In a container: its own mounts, /run and network, and the same path. First with nothing
	// there, then with a data folder of its own.
	own := fmt.Sprintf("mkdir -p %s/agent/containerd && ln -s %s %s && ", target, target, link)
	for _, folder := range []string{"", own} {
		out := harness.Output(t, nil, "unshare", "-m", "-n", "sh", "-c",
			// What another test has mounted below /run may go meanwhile.
			"cut -d' ' -f2 /proc/self/mounts | grep -e '^/run/' -e '^"+dir+"/' | tac | "+
				"xargs -rn1 umount -l 2>/dev/null; "+
				"for d in /run /var/log "+dir+"; do mount -t tmpfs none $d; done && "+folder+
				options.Mote+" uninstall --yes --data-dir "+link)
		t.Logf("in a container: %s", strings.TrimSpace(out))
		if folder == "" && !strings.HasPrefix(out, "nothing to uninstall") {
			t.Errorf("where no mote ever ran, said %q", out)
		}
		if now := shimPids(); !slices.Equal(now, shims) {
			t.Fatalf("shims are %v, were %v: an uninstall elsewhere ended pods", now, shims)
		}
	}
	c.dataDir = target
	c.start(t)
	if now := shimPids(); !slices.Equal(now, shims) {
		t.Errorf("shims are %v, were %v: a start by the folder's own path did not find its pods", now, shims)
	}
	s.ready("web")

	out := runMote(t, "uninstall", "--data-dir", link, "--yes")
	t.Log(out)
	<-c.Exited()
	if !strings.Contains(out, "stopped mote") || strings.Contains(out, "not mote's") {
		t.Errorf("said %q", out)
	}
	if now := shimPids(); len(now) != 0 {
		t.Errorf("left processes %v", now)
	}
	if to, err := os.Readlink(link); err != nil || to != target {
		t.Errorf("the link leads to %q, %v; want it as it was", to, err)
	}
	if entries, err := os.ReadDir(link); err != nil || len(entries) != 0 {
		t.Errorf("left %v in the data folder, %v", entries, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), target) {
		t.Errorf("left mounts below %s:\n%s", target, mounts)
	}
}
