package layout

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFor_SocketsFit checks the limits of the kernel and of containerd for data folders of any
// length.
func TestFor_SocketsFit(t *testing.T) {
	const maxShimDir = 42 // containerd's own limit
	for _, dir := range []string{"/var/lib/mote/agent", "/" + strings.Repeat("long/", 50) + "agent"} {
		p := For(dir)
		for _, s := range []string{p.Socket, p.TTRPC} {
			if len(s) >= maxSocketPath {
				t.Errorf("socket path has %d characters: %s", len(s), s)
			}
		}
		if len(p.Shims) > maxShimDir {
			t.Errorf("folder of shims' sockets has %d characters: %s", len(p.Shims), p.Shims)
		}
	}
}

func TestFor_SameRunFolderThroughLinks(t *testing.T) {
	base := t.TempDir()
	real, link := filepath.Join(base, "real"), filepath.Join(base, "link")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if a, b := For(real).Run, For(link).Run; a != b {
		t.Errorf("one folder has two run-time folders: %s, %s", a, b)
	}
	if a, b := For(real).Run, For(base).Run; a == b {
		t.Errorf("two folders have the run-time folder %s", a)
	}
}

// A first start computes its paths before the data folder exists. With another run-time folder, the
// second start would not find the pods of the first.
func TestFor_SameRunFolderBeforeTheDataFolderExists(t *testing.T) {
	base := t.TempDir()
	real, link := filepath.Join(base, "real"), filepath.Join(base, "link")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(link, "mote", "agent")
	before := For(agent).Run
	if err := os.MkdirAll(agent, 0o755); err != nil {
		t.Fatal(err)
	}
	if after := For(agent).Run; after != before {
		t.Errorf("run-time folder is %s before the data folder exists, %s after", before, after)
	}
}
