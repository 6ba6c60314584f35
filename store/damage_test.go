package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// closedStore makes a store with some keys and gives its path.
func closedStore(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db", "state.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	c := s.Client(t.Context())
	for i := range 200 {
		mustPut(t, c, fmt.Sprintf("key/%03d", i), fmt.Sprintf("value %d %s", i, bytes.Repeat([]byte{'v'}, 300)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpen_Refusals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, path string)
		want   error
	}{
		{"no database", func(t *testing.T, path string) { write(t, path, []byte("hello, this is no database")) },
			ErrDamaged},
		{"start overwritten", func(t *testing.T, path string) { patch(t, path, 0, make([]byte, 600)) }, ErrDamaged},
		{"cut in half", func(t *testing.T, path string) {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, st.Size()/2); err != nil {
				t.Fatal(err)
			}
		}, ErrDamaged},
		{"pages of zeros", func(t *testing.T, path string) { patch(t, path, 20<<10, make([]byte, 20<<10)) },
			ErrDamaged},
		{"another program's", func(t *testing.T, path string) { script(t, path, "PRAGMA application_id = 7") },
			ErrForeign},
		{"of a newer mote", func(t *testing.T, path string) { script(t, path, "PRAGMA user_version = 99") }, ErrNewer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := closedStore(t)
			tc.damage(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), Options{Path: path})
			if !errors.Is(err, tc.want) {
				t.Fatalf("open: %v, want %v", err, tc.want)
			}
			if s != nil {
				t.Error("a store came with the error")
			}
			// A file that does not begin like a database could be anything when it is not in a
			// store's place.
			if _, err := CheckFile(t.Context(), path); !errors.Is(err, tc.want) &&
				!(errors.Is(tc.want, ErrDamaged) && errors.Is(err, ErrForeign)) {
				t.Errorf("check: %v, want %v", err, tc.want)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the refused file was changed (%v)", err)
			}
		})
	}
}

func TestOpen_InUse(t *testing.T) {
	s := openStore(t, Options{})
	if _, err := Open(t.Context(), Options{Path: s.opts.Path}); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v", err)
	}
}

// A changed bit in a value leaves the pages' form alone, so it shows when the value is read.
func TestGet_ChangedBit(t *testing.T) {
	path := closedStore(t)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("value 150 "))
	if at < 0 {
		t.Fatal("value is not in the file")
	}
	patch(t, path, int64(at), []byte("Value"))
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.Client(t.Context())
	if _, err := c.Get(t.Context(), "key/150"); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("get of the damaged key: %v", err)
	}
	if g, err := c.Get(t.Context(), "key/151"); err != nil || g.Count != 1 {
		t.Errorf("get of another key: %v", err)
	}
	if _, err := CheckFile(context.Background(), path); !errors.Is(err, ErrDamaged) {
		t.Errorf("check: %v", err)
	}
}

func TestRestore_RefusesAndKeeps(t *testing.T) {
	path := closedStore(t)
	dir := t.TempDir()
	info, err := Snapshot(t.Context(), path, dir)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(info.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut":     good[:len(good)/2],
		"changed": slices.Concat(good[:len(good)/2], []byte{^good[len(good)/2]}, good[len(good)/2+1:]),
		"foreign": []byte("not a snapshot at all"),
		"empty":   nil,
	} {
		file := filepath.Join(dir, name)
		write(t, file, bad)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(t.Context(), file, path); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the store was changed (%v)", name, err)
		}
	}
	s := openStore(t, Options{Path: path})
	if _, err := Restore(t.Context(), info.Path, path); !errors.Is(err, ErrInUse) {
		t.Errorf("restore over an open store: %v", err)
	}
	if g, err := s.Client(t.Context()).Get(t.Context(), "key/000"); err != nil || g.Count != 1 {
		t.Errorf("the store after refused restores: %v", err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func script(t *testing.T, path, sql string) {
	t.Helper()
	c, err := openConn(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.script(sql), c.script("PRAGMA wal_checkpoint(TRUNCATE)"), c.close()); err != nil {
		t.Fatal(err)
	}
}
