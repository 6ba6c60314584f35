package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWrite_ReplacesWholeAndLeavesNothingBeside(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	name := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"a longer first content", "short"} {
		if err := Write(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != text {
			t.Fatalf("read %q, %v; want %q", got, err, text)
		}
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode is %v, %v; want 0644 whatever the umask", info.Mode(), err)
	}
	only(t, filepath.Dir(name), "f")
}

func TestWrite_KeepsTheOldOneWhenItCannotReplace(t *testing.T) {
	dir := t.TempDir()
	// A folder in the place cannot be replaced by a file.
	if err := os.MkdirAll(filepath.Join(dir, "f", "inside"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "f"), []byte("x"), 0o600); err == nil {
		t.Fatal("a folder was replaced")
	}
	only(t, dir, "f")
	if err := Write(filepath.Join(dir, "missing", "f"), nil, 0o600); err == nil {
		t.Error("wrote into a folder that is not there")
	}
}

func only(t *testing.T, dir, name string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != name {
		t.Errorf("folder holds %v, %v; want %s alone", entries, err, name)
	}
}

// On a full disk nothing can be replaced, and what is there already need not be.
func TestWrite_FullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a small disk: needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mounts here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	name := filepath.Join(dir, "f")
	if err := Write(name, []byte("same"), 0o600); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	for _, test := range []struct {
		name, text string
		mode       os.FileMode
		gid        int
		refused    bool
	}{
		{"the same", "same", 0o600, -1, false},
		{"the same for a group", "same", 0o600, os.Getgid(), false},
		{"other text", "else", 0o600, -1, true},
		{"another mode", "same", 0o644, -1, true},
		{"another group", "same", 0o600, os.Getgid() + 1, true},
	} {
		err := WriteForGroup(name, []byte(test.text), test.mode, test.gid)
		if (err != nil) != test.refused || err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want it refused: %v", test.name, err, test.refused)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left %v, %v", entries, err)
	}
}
