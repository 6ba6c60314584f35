package hostcheck

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestInotifyInUse(t *testing.T) {
	proc := t.TempDir()
	for fd, to := range map[string]string{
		"12/fd/3": "anon_inode:inotify", "12/fd/4": "/dev/null", "12/fd/5": "anon_inode:inotify",
		"13/fd/0": "anon_inode:[eventpoll]",
		"14/fd/7": "anon_inode:inotify", "self/fd/3": "anon_inode:inotify",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(proc, fd)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(proc, fd)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := inotifyInUse(proc, os.Getuid()); n != 3 || err != nil {
		t.Errorf("counted %d, %v; want 3", n, err)
	}
	if n, err := inotifyInUse(proc, os.Getuid()+1); n != 0 || err != nil {
		t.Errorf("counted %d of another user, %v; want none", n, err)
	}
	if _, err := inotifyInUse(filepath.Join(proc, "none"), 0); err == nil {
		t.Error("what cannot be counted counts as none")
	}
}

func TestInotifyOf_Kernel(t *testing.T) {
	before := inotifyOf("/proc/self/fd")
	for range 3 {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	if n := inotifyOf("/proc/self/fd") - before; n != 3 {
		t.Errorf("three new ones count as %d", n)
	}
}
