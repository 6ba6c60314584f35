package recovery

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

func TestRemedy(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want bool
	}{
		{"no inotify instance, as containerd says it", fmt.Errorf("load io.containerd.grpc.v1.cri: %w", fmt.Errorf("create fsnotify watcher: %w", unix.EMFILE)), true},
		{"disk full", &os.PathError{Op: "write", Path: "meta.db", Err: unix.ENOSPC}, true},
		{"no memory", errors.Join(errors.New("map database"), unix.ENOMEM), true},
		{"damage", errDamagedDB, false},
		{"a file that is missing", os.ErrNotExist, false},
		{"a disk that fails to read", unix.EIO, false},
		{"nothing", nil, false},
	} {
		if got := Remedy(row.err); (got != "") != row.want {
			t.Errorf("%s: %q, want something to do: %v", row.name, got, row.want)
		}
	}
}

// The library that containerd watches folders with must hand on the kernel's
// error, or a machine without inotify instances would lose its containers' state.
func TestRemedy_SeesWhatTheWatcherSays(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 0
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscan(filepath.Base(e.Name()), &n); err == nil {
			low.Cur = max(low.Cur, n)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	var open []*fsnotify.Watcher
	defer func() {
		for _, w := range open {
			_ = w.Close()
		}
	}()
	for {
		w, err := fsnotify.NewWatcher()
		if err == nil {
			open = append(open, w)
			continue
		}
		if Remedy(err) == "" {
			t.Errorf("%v (%T) is not taken for a shortage", err, err)
		}
		return
	}
}
