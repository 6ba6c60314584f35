package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfig_Validate(t *testing.T) {
	for _, row := range []struct {
		name string
		c    Config
		want []string
	}{
		{"good", Config{DataDir: "/d"}, nil},
		{"nothing", Config{}, []string{"absolute path"}},
		{"relative", Config{DataDir: "d"}, []string{"absolute path"}},
		{"everything", Config{Snapshotter: "zfs", CgroupDriver: "upstart", MaxConcurrentDownloads: -1}, []string{"absolute path", "zfs", "upstart", "-1"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := row.c.Validate()
			if (err == nil) != (len(row.want) == 0) {
				t.Fatalf("error is %v", err)
			}
			for _, w := range row.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %v does not say %q", err, w)
				}
			}
		})
	}
}

// TestConfig_SocketsFit checks the limits of the kernel and of containerd, for
// data folders of any length.
func TestConfig_SocketsFit(t *testing.T) {
	const maxShimDir = 42 // containerd's own limit
	for _, dir := range []string{"/var/lib/mote/agent", "/" + strings.Repeat("long/", 50) + "agent"} {
		p := Config{DataDir: dir}.withDefaults().paths()
		for _, s := range []string{p.socket, p.ttrpc} {
			if len(s) >= maxSocketPath {
				t.Errorf("socket path has %d characters: %s", len(s), s)
			}
		}
		if len(p.shims) > maxShimDir {
			t.Errorf("folder of shims' sockets has %d characters: %s", len(p.shims), p.shims)
		}
	}
}

func TestRunDirFor_SameForLinks(t *testing.T) {
	base := t.TempDir()
	real, link := filepath.Join(base, "real"), filepath.Join(base, "link")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if a, b := runDirFor(real), runDirFor(link); a != b {
		t.Errorf("one folder has two run-time folders: %s, %s", a, b)
	}
	if a, b := runDirFor(real), runDirFor(base); a == b {
		t.Errorf("two folders have the run-time folder %s", a)
	}
}
