package recovery

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// writeBolt makes a database with nested and inline buckets, long values that take overflow pages,
// and pages freed again.
func writeBolt(t *testing.T, o *bbolt.Options) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.db")
	db, err := bbolt.Open(file, 0o600, o)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			for b := range 5 {
				bucket, err := tx.CreateBucketIfNotExists(fmt.Appendf(nil, "bucket %d", b))
				if err != nil {
					return err
				}
				if _, err := bucket.CreateBucketIfNotExists([]byte("small")); err != nil {
					return err
				}
				for k := range 40 {
					if err := bucket.Put(fmt.Appendf(nil, "key %d", k), make([]byte, (round+1)*(k%7)*300)); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCheckBolt_AcceptsWhole(t *testing.T) {
	for name, o := range map[string]*bbolt.Options{
		"default":     nil,
		"no freelist": {NoFreelistSync: true},
		"large pages": {PageSize: 16384},
	} {
		t.Run(name, func(t *testing.T) {
			file := writeBolt(t, o)
			if err := checkBolt(file); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckBolt_MissingFile(t *testing.T) {
	if err := checkBolt(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) ||
		errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v", err)
	}
}

// TestCheckBolt_FindsCut cuts a file at every page. Each must be reported as damaged, and none may
// end the process.
func TestCheckBolt_FindsCut(t *testing.T) {
	data, err := os.ReadFile(writeBolt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	var whole boltChecker
	f, err := os.Open(writeBolt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole = boltChecker{r: f, size: uint64(len(data)), seen: map[uint64]bool{}}
	if err := whole.check(); err != nil {
		t.Fatal(err)
	}
	used := int(whole.meta.pages * whole.meta.pageSize)
	file := filepath.Join(t.TempDir(), "cut.db")
	for size := 0; size < used; size += 4096 {
		if err := os.WriteFile(file, data[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkBolt(file); !errors.Is(err, ErrDamaged) {
			t.Fatalf("file cut at %d of %d bytes: %v", size, used, err)
		}
	}
}

// TestCheckBolt_FindsZeroedPages zeroes each page in use but the older meta page, without which
// bbolt can do.
func TestCheckBolt_FindsZeroedPages(t *testing.T) {
	file := writeBolt(t, nil)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := boltChecker{r: bytesAt(data), size: uint64(len(data)), seen: map[uint64]bool{}}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	for id := range c.seen {
		harmed := append([]byte(nil), data...)
		clear(harmed[id*4096 : (id+1)*4096])
		h := boltChecker{r: bytesAt(harmed), size: uint64(len(harmed)), seen: map[uint64]bool{}}
		if err := h.check(); !errors.Is(err, ErrDamaged) {
			t.Errorf("page %d zeroed: %v", id, err)
		}
	}
}

// TestCheckBolt_SurvivesGarbage flips bytes everywhere; the check may miss a changed value, but
// must always return.
func TestCheckBolt_SurvivesGarbage(t *testing.T) {
	data, err := os.ReadFile(writeBolt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		harmed := append([]byte(nil), data...)
		for range 8 {
			page := rnd.IntN(len(harmed) / 4096)
			harmed[page*4096+rnd.IntN(96)] = byte(rnd.Uint32())
		}
		h := boltChecker{r: bytesAt(harmed), size: uint64(len(harmed)), seen: map[uint64]bool{}}
		if err := h.check(); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
}

// failingAt fails every read from the nth on as a bad disk does.
type failingAt struct {
	io.ReaderAt
	n *int
}

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if *f.n--; *f.n < 0 {
		return 0, unix.EIO
	}
	return f.ReaderAt.ReadAt(p, off)
}

// A disk that fails to read says nothing about what the file holds.
func TestCheckBolt_FailedRead_IsNotDamage(t *testing.T) {
	data, err := os.ReadFile(writeBolt(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	for reads := 0; ; reads++ {
		n := reads
		c := boltChecker{r: failingAt{bytesAt(data), &n}, size: uint64(len(data)), seen: map[uint64]bool{}}
		err := c.check()
		if err == nil {
			if reads < 10 {
				t.Errorf("the check made only %d reads", reads)
			}
			return
		}
		if !errors.Is(err, unix.EIO) || Damaged(err) {
			t.Fatalf("read %d failed: error is %v", reads, err)
		}
	}
}

// bytesAt is an io.ReaderAt over bytes.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) {
		return 0, errors.New("out of range")
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
