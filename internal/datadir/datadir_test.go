package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var now = Versions{Mote: "v0.1.0", Kubernetes: "v1.37.2"}

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestOpen_SecondMote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d := open(t, path)
	_, err := Open(path, now)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) ||
		!strings.Contains(err.Error(), path) {
		t.Fatalf("second open: %v, want ErrInUse that names process and folder", err)
	}
	if pid, err := Holder(path); err != nil || pid != os.Getpid() {
		t.Fatalf("holder is %d, %v; want this process", pid, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(path); err != nil || pid != 0 {
		t.Fatalf("holder after close is %d, %v; want none", pid, err)
	}
	open(t, path)
}

func TestHolder_NoFolder(t *testing.T) {
	if pid, err := Holder(filepath.Join(t.TempDir(), "none")); pid != 0 || err != nil {
		t.Fatalf("got %d, %v; want nobody", pid, err)
	}
}

func TestAbandon_LeavesNothing(t *testing.T) {
	root := t.TempDir()
	d := open(t, filepath.Join(root, "a", "b"))
	if err := d.Abandon(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 0 {
		t.Fatalf("left %v, %v", entries, err)
	}
}

func TestAbandon_KeepsWhatWasThere(t *testing.T) {
	path := t.TempDir()
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Abandon(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(At(path).lockFile()); err != nil {
		t.Errorf("lock file of an earlier run: %v", err)
	}
}

func TestOpen_Version(t *testing.T) {
	for _, test := range []struct {
		name, file string
		refused    bool
	}{
		{"none", "", false},
		{"same", "layout 1\nmote v0.1.0\nkubernetes v1.37.2\n", false},
		{"older", "layout 1\nmote v0.0.9\nkubernetes v1.36.9\n", false},
		{"newer patch", "layout 1\nmote v0.1.1\nkubernetes v1.37.9\n", false},
		{"newer minor", "layout 1\nmote v0.2.0\nkubernetes v1.38.0\n", true},
		{"newer layout", "layout 2\nmote v9.0.0\nkubernetes v1.37.2\n", true},
		{"unknown form", "v999.0.0\n", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := t.TempDir()
			if test.file != "" {
				if err := os.WriteFile(At(path).versionFile(), []byte(test.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			d, err := Open(path, now)
			if err == nil {
				defer d.Close()
			}
			if got := errors.Is(err, ErrNewer); got != test.refused || (err != nil && !got) {
				t.Fatalf("error is %v, want refused: %v", err, test.refused)
			}
			if !test.refused {
				return
			}
			if _, err := os.Stat(At(path).lockFile()); !errors.Is(err, os.ErrNotExist) {
				t.Error("a refused folder was changed")
			}
		})
	}
}

func TestCommit_RecordsVersions(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	newer := Versions{Mote: "v1.0.0", Kubernetes: "v1.38.0"}
	if err := d.Commit(newer); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, now); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "v1.0.0") {
		t.Fatalf("error is %v, want ErrNewer naming v1.0.0", err)
	}
}

func TestRecordOutside_Once(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	for _, f := range []string{"/etc/a", "/etc/b", "/etc/a"} {
		if err := d.RecordOutside(f); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Outside(path)
	if err != nil || !slices.Equal(got, []string{"/etc/a", "/etc/b"}) {
		t.Fatalf("outside is %q, %v", got, err)
	}
}

// A mote on a full disk that was killed finds no byte for what is there already.
func TestOpen_FullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a small disk: needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mounts here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	path := filepath.Join(disk, "data")
	first, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Commit(now), first.Close()); err != nil {
		t.Fatal(err)
	}
	// A longer number than any process has, and room for nothing else.
	if err := os.WriteFile(At(path).lockFile(), []byte("99999999\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	again, err := Open(path, now)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Commit(now); err != nil {
		t.Error(err)
	}
	if pid, err := Holder(path); err != nil || pid != os.Getpid() {
		t.Errorf("holder is %d, %v; want this process", pid, err)
	}
}
