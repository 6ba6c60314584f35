package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// bigStore makes a store whose copy takes a while, and returns its path and size. Its rows have no
// checksums.
func bigStore(t *testing.T) (path string, size int64) {
	t.Helper()
	path = closedStore(t)
	script(t, path, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
		INSERT INTO log(prev, created, version, lease, key, value) SELECT 0, 1, 1, 0, 'filler', randomblob(1000) FROM n`)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, st.Size()
}

// whenCopying calls then once the copy at path has its first bytes, and returns its length at the
// end.
func whenCopying(t *testing.T, path string, then func()) (length func() int64) {
	t.Helper()
	ended, got := make(chan struct{}), int64(0)
	f := make(chan *os.File, 1)
	go func() {
		for {
			select {
			case <-ended:
				f <- nil
				return
			default:
			}
			if st, err := os.Stat(path); err != nil || st.Size() == 0 {
				continue
			}
			open, _ := os.Open(path)
			then()
			f <- open
			return
		}
	}()
	return func() int64 {
		t.Helper()
		close(ended)
		open := <-f
		if open == nil {
			t.Fatal("nothing was copied")
		}
		defer open.Close()
		st, err := open.Stat()
		if err != nil {
			t.Fatal(err)
		}
		got = st.Size()
		return got
	}
}

func TestCopyStore_Cancelled_EndsEarlyAndRemovesTheCopy(t *testing.T) {
	path, size := bigStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dest := filepath.Join(t.TempDir(), "copy")
	length := whenCopying(t, dest, cancel)
	err := copyStore(ctx, path, dest)
	if n := length(); n > size/2 {
		t.Errorf("%d of %d bytes were copied after the cancellation", n, size)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled copy: %v", err)
	}
	if _, err := os.Stat(dest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the partial copy is still there (%v)", err)
	}
}

func TestCopyStore_LeavesAFileThatIsThere(t *testing.T) {
	path := closedStore(t)
	dest := filepath.Join(t.TempDir(), "copy")
	write(t, dest, []byte("precious"))
	if err := copyStore(t.Context(), path, dest); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file: %v", err)
	}
	if b, err := os.ReadFile(dest); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestStore_Close_EndsACopyInProgress(t *testing.T) {
	path, size := bigStore(t)
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "copy")
	closed := make(chan error, 1)
	length := whenCopying(t, dest, func() { go func() { closed <- s.Close() }() })
	err = s.snapshots.copyTo(t.Context(), dest)
	if n := length(); n > size/2 {
		t.Errorf("%d of %d bytes were copied after the store was closed", n, size)
	}
	if !errors.Is(err, ErrClosed) {
		t.Errorf("copy of a store that closes: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Stat(dest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the partial copy is still there (%v)", err)
	}
	send := func(*pb.SnapshotResponse) error { return nil }
	if err := s.snapshots.stream(t.Context(), send); !errors.Is(err, ErrClosed) {
		t.Errorf("snapshot of a closed store: %v", err)
	}
}

func TestStore_Close_EndsRun(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Path: filepath.Join(dir, "state.db"), SnapshotDir: dir, SnapshotEvery: 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan struct{})
	ran := make(chan error, 1)
	go func() {
		close(running)
		ran <- s.Run(context.Background())
	}()
	<-running
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ran; err != nil {
		t.Errorf("run of a closed store: %v", err)
	}
	if _, err := s.Client(t.Context()).Get(t.Context(), "key"); !errors.Is(err, rpctypes.ErrStopped) {
		t.Errorf("get from a closed store: %v", err)
	}
}

// A snapshot folder that cannot be made must not end the store: a full disk is one reason.
func TestStore_Run_WithoutASnapshotFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), nil)
	s, err := Open(t.Context(), Options{
		Path:          filepath.Join(dir, "state.db"),
		SnapshotDir:   filepath.Join(dir, "file", "snapshots"),
		SnapshotEvery: 1 << 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(context.Background()) }()
	if _, err := s.snapshots.take(t.Context()); err == nil {
		t.Error("a snapshot was written to a folder that cannot be")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ran; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestCheckFile_CannotRead_IsNoDamage(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 253)) // with -wal it is too long for a name
	write(t, long, nil)
	for _, path := range []string{dir, long} {
		_, err := CheckFile(t.Context(), path)
		if err == nil || errors.Is(err, ErrDamaged) || errors.Is(err, ErrForeign) {
			t.Errorf("check of a file that cannot be read: %v", err)
		}
	}
	if _, err := verify(t.Context(), dir); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("check of a folder: %v", err)
	}
	if _, err := setAside(long); err == nil {
		t.Error("a store of which part cannot be looked for was taken for none")
	}
}

func TestListSnapshots_OnlyOwnNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"mote-7-20260102T030405Z.db.zst", "mote-x-20260102T030405Z.db.zst", "other",
		"mote-+8-20260102T030405Z.db.zst", "mote-008-20260102T030405Z.db.zst", "mote-8-20260102T030405Z",
		"mote-8-20260102T030405Z-before.db.zst", "mote-auto-x-20260102T030405Z.db.zst", "mote-auto.db.zst",
	} {
		write(t, filepath.Join(dir, name), nil)
	}
	all, err := ListSnapshots(dir)
	if err != nil || len(all) != 1 || all[0].Revision != 7 ||
		fmt.Sprint(all[0].Taken) != "2026-01-02 03:04:05 +0000 UTC" {
		t.Errorf("list: %+v, %v", all, err)
	}
}

// Only what the store took by itself is its to remove: a snapshot that somebody saved into the same
// folder may be all that is left of a cluster.
func TestSnapshots_Drop_RemovesOldAutomaticOnesOnly(t *testing.T) {
	dir := t.TempDir()
	path := closedStore(t)
	saved, err := Snapshot(t.Context(), path, dir)
	if err != nil {
		t.Fatal(err)
	}
	stay := []string{
		filepath.Base(saved.Path),
		// Saved without a name, and automatic ones of the time when both were called that.
		"mote-1-20200102T030405Z.db.zst", "mote-2-20200102T030406Z.db.zst", "mote-3-20200102T030407Z.db.zst",
		"mote-before-upgrade.db.zst", "before.db.zst", "mote-auto-1-20200102T030405Z.db.zst.bak",
		"my-mote-auto-1-20200102T030405Z.db.zst", "mote-auto-01-20200102T030405Z.db.zst",
		"mote-auto-2-20990102T030405Z.db.zst", "mote-auto-3-20980102T030405Z.db.zst",
	}
	for _, name := range stay[1:] {
		write(t, filepath.Join(dir, name), nil)
	}
	// A folder and a link under such a name are nothing a store makes.
	const folder, link = "mote-auto-4-20200102T030405Z.db.zst", "mote-auto-5-20200102T030405Z.db.zst"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, folder), 0o700),
		os.Symlink("before.db.zst", filepath.Join(dir, link))); err != nil {
		t.Fatal(err)
	}
	stay = append(stay, folder, link)
	for i := range 3 {
		write(t, filepath.Join(dir, fmt.Sprintf("mote-auto-%d-2020010%dT030405Z.db.zst", i+6, i+2)), nil)
	}
	s := &snapshots{dir: dir, keep: 2}
	if err := s.drop(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	slices.Sort(stay)
	if !slices.Equal(left, stay) {
		t.Errorf("left are\n%q, want\n%q", left, stay)
	}
}

// What a store takes by itself has a name that drop knows.
func TestSnapshots_Take_IsAutomatic(t *testing.T) {
	s := openStore(t, Options{SnapshotDir: t.TempDir(), SnapshotEvery: 1 << 60})
	if _, err := s.snapshots.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Snapshot(t.Context(), s.opts.Path, s.opts.SnapshotDir); err != nil {
		t.Fatal(err)
	}
	all, err := ListSnapshots(s.opts.SnapshotDir)
	if err != nil || len(all) != 2 {
		t.Fatalf("list: %+v, %v", all, err)
	}
	if all[0].automatic == all[1].automatic {
		t.Errorf("of an automatic and a saved snapshot, both or none are automatic: %+v", all)
	}
}

// A copy that a killed process left goes; one that somebody is making stays.
func TestSnapshots_RemoveHalf(t *testing.T) {
	path, dir := closedStore(t), t.TempDir()
	now := time.Now()
	db := filepath.Dir(path)
	for _, row := range []struct {
		folder string
		age    time.Duration
		stays  bool
	}{
		{filepath.Join(dir, ".snapshot-1"), 2 * abandoned, false},
		{filepath.Join(dir, ".snapshot-2"), 0, true},
		{filepath.Join(dir, ".check-3"), 2 * abandoned, false},
		{filepath.Join(db, ".snapshot-4"), 2 * abandoned, false},
		{filepath.Join(db, ".restore-5"), 0, false},
		{filepath.Join(dir, "snapshot-6"), 2 * abandoned, true},
	} {
		raw := filepath.Join(row.folder, "raw.db")
		at := now.Add(-row.age)
		if err := os.Mkdir(row.folder, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, raw, nil)
		if err := errors.Join(os.Chtimes(raw, at, at), os.Chtimes(row.folder, at, at)); err != nil {
			t.Fatal(err)
		}
		s := &snapshots{path: path, dir: dir}
		if err := s.removeHalf(now); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(row.folder); (err == nil) != row.stays {
			t.Errorf("%s: %v, want it to stay: %v", row.folder, err, row.stays)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
