package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/mattn/go-sqlite3"
)

// named are the errors that make callers act on a file.
var named = []error{ErrDamaged, ErrForeign, ErrNewer, ErrInUse, ErrNoSpace}

// checkNamed wants err to be want and none of the others.
func checkNamed(t *testing.T, err, want error) {
	t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
	for _, other := range named {
		if !errors.Is(want, other) && errors.Is(err, other) {
			t.Errorf("error %q counts as %q", err, other)
		}
	}
}

func TestFault(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  sqlite3.Error
		want error
	}{
		{"corrupt", sqlite3.Error{Code: sqlite3.ErrCorrupt}, ErrDamaged},
		{"no database", sqlite3.Error{Code: sqlite3.ErrNotADB}, ErrDamaged},
		{"full", sqlite3.Error{Code: sqlite3.ErrFull}, ErrNoSpace},
		{"no space", sqlite3.Error{Code: sqlite3.ErrIoErr, SystemErrno: syscall.ENOSPC}, ErrNoSpace},
		{"no quota", sqlite3.Error{Code: sqlite3.ErrIoErr, SystemErrno: syscall.EDQUOT}, ErrNoSpace},
		{"failed read", sqlite3.Error{Code: sqlite3.ErrIoErr, ExtendedCode: sqlite3.ErrIoErrRead,
			SystemErrno: syscall.EIO}, nil},
		{"no descriptors", sqlite3.Error{Code: sqlite3.ErrCantOpen, SystemErrno: syscall.EMFILE}, nil},
		{"no permission", sqlite3.Error{Code: sqlite3.ErrCantOpen, SystemErrno: syscall.EACCES}, nil},
		{"no memory", sqlite3.Error{Code: sqlite3.ErrNomem}, nil},
		{"interrupted", sqlite3.Error{Code: sqlite3.ErrInterrupt}, nil},
		{"busy", sqlite3.Error{Code: sqlite3.ErrBusy}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := fault(fault(tc.err))
			checkNamed(t, err, tc.want)
			if got, ok := errors.AsType[sqlite3.Error](err); !ok || got != tc.err {
				t.Errorf("cause %v is lost in %v", tc.err, err)
			}
			if text := err.Error(); strings.Contains(text, "\n") || tc.want != nil &&
				strings.Count(text, tc.want.Error()) != 1 {
				t.Errorf("error reads %q", text)
			}
		})
	}
}

func TestLockFault(t *testing.T) {
	checkNamed(t, lockFault(syscall.EWOULDBLOCK), ErrInUse)
	checkNamed(t, lockFault(syscall.ENOLCK), nil)
}

// Without file descriptors no file can be opened, which says nothing about the file.
func TestOpen_NoDescriptors_IsNoDamage(t *testing.T) {
	path := closedStore(t)
	info, err := Snapshot(t.Context(), path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	restored := filepath.Join(t.TempDir(), "state.db")
	seen := 0
	for limit := uint64(3); limit < 64; limit++ {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		s, openErr := Open(t.Context(), Options{Path: path})
		_, checkErr := CheckFile(t.Context(), info.Path)
		_, verifyErr := verify(t.Context(), path)
		_, restoreErr := Restore(context.Background(), info.Path, restored)
		if openErr == nil {
			openErr = s.Close()
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{openErr, checkErr, verifyErr, restoreErr} {
			if err != nil {
				seen++
				checkNamed(t, err, nil)
			}
		}
	}
	if seen == 0 {
		t.Error("there were descriptors for all that was tried")
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestDecompress_NamesOnlyBadContentDamage(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 1<<16)
	var packed, wide bytes.Buffer
	for w, opts := range map[io.Writer][]zstd.EOption{&packed: {zstd.WithWindowSize(1 << 20)},
		&wide: {zstd.WithWindowSize(512 << 20)}} {
		z, err := zstd.NewWriter(w, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	good := packed.Bytes()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	changed := bytes.Clone(good)
	changed[len(changed)-1] ^= 1
	for _, tc := range []struct {
		name string
		ctx  context.Context
		src  io.Reader
		dest io.Writer
		want error
		is   error
	}{
		{name: "cut", src: bytes.NewReader(good[:len(good)/2]), want: ErrDamaged},
		{name: "changed", src: bytes.NewReader(changed), want: ErrDamaged},
		{name: "window", src: &wide, want: ErrForeign},
		{name: "failed read", src: io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(syscall.EIO)),
			is: syscall.EIO},
		{
			name: "failed write",
			src:  bytes.NewReader(good),
			dest: failingWriter{syscall.ENOSPC},
			is:   syscall.ENOSPC,
		},
		{
			name: "cancelled",
			ctx:  ended,
			src:  bytes.NewReader(good),
			is:   context.Canceled,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.ctx == nil {
				tc.ctx = t.Context()
			}
			if tc.dest == nil {
				tc.dest = io.Discard
			}
			err := decompress(tc.ctx, tc.dest, tc.src)
			checkNamed(t, err, tc.want)
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error is %v, want %v", err, tc.is)
			}
		})
	}
	if err := decompress(t.Context(), io.Discard, bytes.NewReader(good)); err != nil {
		t.Errorf("good content: %v", err)
	}
}

func TestRequestCopy_NobodyAnswers(t *testing.T) {
	s, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Run takes the requests and does not run.
	_, err = Snapshot(t.Context(), s.opts.Path, t.TempDir())
	checkNamed(t, err, ErrInUse)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Snapshot(ctx, s.opts.Path, t.TempDir())
	checkNamed(t, err, nil)
	if err := os.Remove(s.opts.Path + ".sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket nobody made: %v", err)
	}
}
