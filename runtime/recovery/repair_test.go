package recovery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/fsnotify/fsnotify"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
)

func TestDamaged(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want bool
	}{
		{"our own check", fmt.Errorf("check meta.db: %w", damagedDB("tree is too deep")), true},
		{"bbolt: no database", fmt.Errorf("load io.containerd.metadata.v1.bolt: %w", berrors.ErrInvalid), true},
		{"bbolt: checksum", berrors.ErrChecksum, true},
		{"bbolt: version", berrors.ErrVersionMismatch, true},
		{"bbolt: another process has the file", berrors.ErrTimeout, false},
		{"read-only file system", &os.PathError{Op: "open", Path: "meta.db", Err: unix.EROFS}, false},
		{"bad disk", unix.EIO, false},
		{"no permission", os.ErrPermission, false},
		{"missing file", os.ErrNotExist, false},
		{"a setting containerd does not know", errors.New("set up io.containerd.grpc.v1.cri: strict mode"), false},
		{"nothing", nil, false},
	} {
		if got := Damaged(row.err); got != row.want {
			t.Errorf("%s: damaged is %v, want %v", row.name, got, row.want)
		}
	}
}

// testPaths returns the paths of a data folder of the test, with its folders made.
func testPaths(t *testing.T) layout.Paths {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes a folder in /run: needs root")
	}
	p := layout.For(filepath.Join(t.TempDir(), "agent"))
	must(t, p.Mkdirs())
	t.Cleanup(func() { must(t, os.RemoveAll(p.Run)) })
	return p
}

// writeRecords makes a metadata database and that of a snapshotter with one layer.
func writeRecords(t *testing.T, p layout.Paths) (meta, snapshots string) {
	t.Helper()
	meta = filepath.Join(p.Root, layout.MetadataDB)
	must(t, os.MkdirAll(filepath.Dir(meta), 0o755))
	must(t, os.Rename(writeBolt(t, nil), meta))
	folder := filepath.Join(p.Root, layout.Snapshotter+"overlayfs")
	snapshots = filepath.Join(folder, snapshotsFolder)
	must(t, os.MkdirAll(filepath.Join(snapshots, "7"), 0o755))
	db, err := bbolt.Open(filepath.Join(folder, snapshotDB), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		v1, err := tx.CreateBucket([]byte("v1"))
		if err != nil {
			return err
		}
		list, err := v1.CreateBucket([]byte("snapshots"))
		if err != nil {
			return err
		}
		layer, err := list.CreateBucket([]byte("layer"))
		if err != nil {
			return err
		}
		kind, id := []byte{kindCommitted}, binary.AppendUvarint(nil, 7)
		return errors.Join(layer.Put([]byte("kind"), kind), layer.Put([]byte("id"), id))
	}))
	must(t, db.Close())
	return meta, snapshots
}

// fakePod starts a process that counts as a pod of p, and returns a function that reports whether
// it runs.
func fakePod(t *testing.T, p layout.Paths) (running func() bool) {
	t.Helper()
	shell, err := exec.LookPath("sh")
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	cmd := &exec.Cmd{Path: shell, Args: []string{bundle.Shim, "-c", "read line", "-address", p.Socket}, Stdin: r}
	must(t, cmd.Start())
	must(t, r.Close())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // it was killed, or its input ended
	}()
	t.Cleanup(func() {
		_ = w.Close()
		<-done
	})
	return func() bool {
		_, ok := readProcess(cmd.Process.Pid)
		return ok
	}
}

// loop makes every access to a path fail with ELOOP, an error that says nothing about its content.
func loop(t *testing.T, path string) {
	t.Helper()
	must(t, os.RemoveAll(path))
	must(t, os.Symlink(path, path))
}

// tree lists all files of a node.
func tree(t *testing.T, p layout.Paths) (found []string) {
	t.Helper()
	for _, dir := range []string{p.Agent, p.Run} {
		must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			found = append(found, path)
			return err
		}))
	}
	return found
}

// TestRepair_UnknownError_LeavesRecordsAndPods has reads fail for reasons other than damage.
func TestRepair_UnknownError_LeavesRecordsAndPods(t *testing.T) {
	for _, row := range []struct {
		name string
		harm func(t *testing.T, p layout.Paths, meta, snapshots string)
	}{
		{"metadata", func(t *testing.T, _ layout.Paths, meta, _ string) { loop(t, meta) }},
		{"snapshots", func(t *testing.T, _ layout.Paths, _, snapshots string) { loop(t, snapshots) }},
		{"list of mounts", func(t *testing.T, p layout.Paths, _, _ string) {
			dir := filepath.Join(p.State, mountFolder)
			must(t, os.MkdirAll(dir, 0o755))
			loop(t, filepath.Join(dir, "mounts.db"))
		}},
		{"bundle of a container", func(t *testing.T, p layout.Paths, _, _ string) {
			dir := filepath.Join(p.State, taskFolder, layout.Namespace, "container")
			must(t, os.MkdirAll(dir, 0o755))
			loop(t, filepath.Join(dir, "sandbox"))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := testPaths(t)
			meta, snapshots := writeRecords(t, p)
			running := fakePod(t, p)
			row.harm(t, p, meta, snapshots)
			before := tree(t, p)
			err := Repair(t.Context(), p, LastStop{Clean: true, SameBoot: true}, zap.NewNop())
			if !errors.Is(err, unix.ELOOP) || Damaged(err) {
				t.Errorf("error is %v, want that of the file system", err)
			}
			if !running() {
				t.Error("the pod was ended")
			}
			if after := tree(t, p); !slices.Equal(after, before) {
				t.Errorf("files were %v, are %v", before, after)
			}
		})
	}
}

func TestRepair_Damage_SetsRecordsAsideAndEndsPods(t *testing.T) {
	for _, row := range []struct {
		name string
		harm func(t *testing.T, p layout.Paths, meta, snapshots string)
	}{
		{"metadata cut", func(t *testing.T, _ layout.Paths, meta, _ string) { must(t, os.Truncate(meta, 5000)) }},
		{"layer gone", func(t *testing.T, _ layout.Paths, _, snapshots string) { must(t, os.RemoveAll(snapshots)) }},
		// The process was killed after it had moved the records and before it had ended the pods.
		{"containers without records", func(t *testing.T, p layout.Paths, _, _ string) {
			must(t, moveRecords(p.Root, filepath.Join(p.Root, damagedPrefix+"1")))
			must(t, os.MkdirAll(filepath.Join(p.State, taskFolder, layout.Namespace, "container"), 0o755))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := testPaths(t)
			meta, snapshots := writeRecords(t, p)
			running := fakePod(t, p)
			row.harm(t, p, meta, snapshots)
			must(t, Repair(t.Context(), p, LastStop{Clean: true, SameBoot: true}, zap.NewNop()))
			if running() {
				t.Error("the pod was not ended")
			}
			if _, err := os.Stat(meta); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("metadata is still in place: %v", err)
			}
			if _, err := os.Stat(filepath.Join(p.Marks, layout.RebuildMark)); err != nil {
				t.Errorf("images are not to be rebuilt: %v", err)
			}
		})
	}
}

// TestSetAside_RecordsCannotBeMoved_LeavesPods makes one of the records a mount point, which cannot
// be renamed.
func TestSetAside_RecordsCannotBeMoved_LeavesPods(t *testing.T) {
	p := testPaths(t)
	meta, snapshots := writeRecords(t, p)
	running := fakePod(t, p)
	folder := filepath.Dir(snapshots)
	must(t, unix.Mount(folder, folder, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(folder, unix.MNT_DETACH)) })
	if err := SetAside(t.Context(), p, damagedDB("test"), zap.NewNop()); !errors.Is(err, unix.EBUSY) {
		t.Errorf("error is %v, want that of the rename", err)
	}
	if !running() {
		t.Error("the pod was ended")
	}
	if _, err := os.Stat(meta); err != nil {
		t.Errorf("metadata was not put back: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.Marks, layout.RebuildMark)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("images are to be rebuilt: %v", err)
	}
}

// Without a lock on the data folder, clean-up would end the pods of a running mote.
func TestCleanup_UnreadableDataFolder_LeavesPods(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	loop(t, agent)
	running := fakePod(t, layout.For(agent))
	if _, err := Cleanup(t.Context(), agent); !errors.Is(err, unix.ELOOP) {
		t.Errorf("error is %v, want that of the file system", err)
	}
	if !running() {
		t.Error("the pod was ended")
	}
}

func TestRemedy(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want bool
	}{
		{"no inotify instance", fmt.Errorf("load io.containerd.grpc.v1.cri: create fsnotify watcher: %w", unix.EMFILE),
			true},
		{"disk full", &os.PathError{Op: "write", Path: "meta.db", Err: unix.ENOSPC}, true},
		{"no memory", errors.Join(errors.New("map database"), unix.ENOMEM), true},
		{"a disk that fails to read", unix.EIO, true},
		{"read-only", unix.EROFS, true},
		{"damage", ErrDamaged, false},
		{"a file that is missing", os.ErrNotExist, false},
		{"an unknown error", io.ErrNoProgress, false},
		{"nothing", nil, false},
	} {
		if got := remedy(row.err); (got != "") != row.want {
			t.Errorf("%s: %q, want a remedy: %v", row.name, got, row.want)
		}
		if err := WithRemedy(row.err); !errors.Is(err, row.err) {
			t.Errorf("%s: the cause is lost: %v", row.name, err)
		}
	}
}

// The library that containerd watches folders with must pass on the kernel's error, or a machine
// without inotify instances gets no advice.
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
		if remedy(err) == "" {
			t.Errorf("%v (%T) has no remedy", err, err)
		}
		return
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// After a power cut the boot is another one, also on a disk without a byte left.
func TestReadLastStop_FullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a small disk: needs root")
	}
	p := layout.Paths{Marks: t.TempDir()}
	if err := unix.Mount("none", p.Marks, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no mounts here: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(p.Marks, unix.MNT_DETACH)) })
	old := filepath.Join(p.Marks, bootFile)
	must(t, os.WriteFile(old, []byte("00000000-0000-0000-0000-000000000000\n"), 0o600))
	if err := os.WriteFile(filepath.Join(p.Marks, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	for _, same := range []bool{false, true} {
		if last, err := ReadLastStop(p); err != nil || last.SameBoot != same {
			t.Errorf("%+v, %v; want the same boot: %v", last, err, same)
		}
	}
}
