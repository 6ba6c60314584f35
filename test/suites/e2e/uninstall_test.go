package e2e

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// findFile looks for a file by name below a folder; it must be there.
func findFile(t *testing.T, dir, name string) string {
	t.Helper()
	found := ""
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == name {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("no %s below %s (%v)", name, dir, err)
	}
	return found
}

// configDigest reads from an archive the hexadecimal digest of the image's configuration, which
// names its blob.
func configDigest(t *testing.T, archive string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(options.Images, archive+".tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatalf("no manifest.json in %s", archive)
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "manifest.json" {
			continue
		}
		var images []struct{ Config string }
		if err := json.NewDecoder(r).Decode(&images); err != nil || len(images) != 1 {
			t.Fatalf("read manifest.json of %s: %v", archive, err)
		}
		return filepath.Base(images[0].Config)
	}
}

// testUninstall stops nothing by hand: it runs `mote uninstall` on a node full of pods and wants
// the machine as it was before the first start. What others put in the way must stay.
func testUninstall(t *testing.T, c *cluster, before sandbox.Snapshot) {
	// A volume's data, mounted inside the data folder by somebody else: never to be removed.
	treasure := filepath.Join(sandbox.Dir(), "treasure")
	mounted := filepath.Join(c.dataDir, "agent", "disk")
	for _, d := range []string{treasure, mounted} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(treasure, "gold"), []byte("gold"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(treasure, mounted, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if c.Running() {
		c.Stop(t)
	}
	for _, run := range []string{"first", "repeated"} {
		out := runMote(t, "uninstall", "--data-dir", c.dataDir, "--yes")
		t.Logf("%s: %s", run, strings.TrimSpace(out))
	}
	if data, err := os.ReadFile(filepath.Join(treasure, "gold")); err != nil || string(data) != "gold" {
		t.Errorf("what was mounted inside the data folder is lost: %v", err)
	}
	// Ours, not mote's; it may have been unmounted along the way, which harms nobody.
	if err := syscall.Unmount(mounted, syscall.MNT_DETACH); err == nil {
		runMote(t, "uninstall", "--data-dir", c.dataDir, "--yes")
	}
	if err := os.RemoveAll(treasure); err != nil {
		t.Fatal(err)
	}
	for _, line := range before.Added(snapshot(t)) {
		switch {
		case strings.Contains(line, "/proc/sys/kernel/random/boot_id"): // the simulated reboot's
		// the caller chose the place
		case strings.HasPrefix(line, "file: "+c.kubeconfig), line == "file: "+filepath.Dir(c.kubeconfig):
		// a host that had them empty misses nothing
		case line == "removed file: /var/lib/cni", line == "removed file: /var/lib/cni/results":
		case line == "removed file: /var/lib/kubelet":
		case line == "file: /run/mount": // mount(8) keeps its notes there, for whoever calls it
		case strings.Contains(line, "/e2e-termination"): // a pod's hostPath, its user's data
		case strings.HasPrefix(line, "file: "+filepath.Join(sandbox.Dir(), "second")): // another test's folder
		default:
			t.Errorf("left behind: %s", line)
		}
	}
}
