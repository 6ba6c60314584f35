package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	for _, name := range []string{"mote-7-20260102T030405Z.db.zst", "mote-x-20260102T030405Z.db.zst", "other"} {
		write(t, filepath.Join(dir, name), nil)
	}
	all, err := ListSnapshots(dir)
	if err != nil || len(all) != 1 || all[0].Revision != 7 ||
		fmt.Sprint(all[0].Taken) != "2026-01-02 03:04:05 +0000 UTC" {
		t.Errorf("list: %+v, %v", all, err)
	}
}
