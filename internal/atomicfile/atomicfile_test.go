package atomicfile

import (
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
