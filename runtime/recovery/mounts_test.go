package recovery

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveTree_SparesMounts has a foreign file system mounted in a folder that is removed: what
// is in it, and the way to it, must stay.
func TestRemoveTree_SparesMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts: needs root")
	}
	base := t.TempDir()
	foreign, tree := filepath.Join(base, "foreign"), filepath.Join(base, "tree")
	point := filepath.Join(tree, "a", "b", "mounted here")
	for _, d := range []string{foreign, point, filepath.Join(tree, "a", "c", "d")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	precious := filepath.Join(foreign, "precious")
	for _, f := range []string{precious, filepath.Join(tree, "file"), filepath.Join(tree, "a", "c", "d", "file"),
		filepath.Join(tree, "a", "b", "file")} {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(foreign, point, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountBelow(tree); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		kept, err := RemoveTree(tree)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(kept, []string{point}) {
			t.Errorf("kept %v, want %s", kept, point)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("what was mounted is harmed: %v", err)
	}
	for _, f := range []string{"file", "a/c", "a/b/file"} {
		if _, err := os.Lstat(filepath.Join(tree, f)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", f, err)
		}
	}
	if err := unmountBelow(tree); err != nil {
		t.Fatal(err)
	}
	kept, err := RemoveTree(tree)
	if err != nil || len(kept) > 0 {
		t.Errorf("after unmounting: %v, %v", kept, err)
	}
	if _, err := os.Stat(tree); !os.IsNotExist(err) {
		t.Errorf("tree is left: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("what was mounted is harmed: %v", err)
	}
}

func TestRemoveTree_Missing(t *testing.T) {
	if kept, err := RemoveTree(filepath.Join(t.TempDir(), "none")); err != nil || len(kept) > 0 {
		t.Errorf("%v, %v", kept, err)
	}
}

// A path that cannot be resolved may hide a mount, so it is not removed.
func TestRemoveTree_Unresolvable_StaysAsItIs(t *testing.T) {
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	if _, err := RemoveTree(loop); err == nil {
		t.Error("there was no error")
	}
	if _, err := os.Lstat(loop); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}
