package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/layout"
)

// loop makes every access to a path fail with ELOOP, an error that says nothing about its content.
func loop(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.Symlink(path, path))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What cannot be read is not damaged: damaged content is deleted.
func TestFindBlobDamage(t *testing.T) {
	content := []byte("content")
	d := v1.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	for _, row := range []struct {
		name    string
		make    func(t *testing.T, file string)
		hash    bool
		damaged bool
		err     error
	}{
		{name: "intact", make: func(t *testing.T, f string) { must(t, os.WriteFile(f, content, 0o600)) }, hash: true},
		{name: "missing", make: func(*testing.T, string) {}, damaged: true},
		{name: "cut", make: func(t *testing.T, f string) { must(t, os.WriteFile(f, content[:3], 0o600)) },
			damaged: true},
		{
			name:    "zeroed",
			make:    func(t *testing.T, f string) { must(t, os.WriteFile(f, make([]byte, 7), 0o600)) },
			hash:    true,
			damaged: true,
		},
		{name: "zeroed, not hashed",
			make: func(t *testing.T, f string) { must(t, os.WriteFile(f, make([]byte, 7), 0o600)) }},
		{name: "cannot be opened", make: loop, err: unix.ELOOP},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "blob")
			row.make(t, file)
			damage, err := findBlobDamage(file, d, row.hash)
			if errors.Is(damage, errNotIntact) != row.damaged || !errors.Is(err, row.err) {
				t.Errorf("damage %v, error %v; want damage: %v, error %v", damage, err, row.damaged, row.err)
			}
		})
	}
}

// An archive is loaded again if its record is garbled, not if the record cannot be read.
func TestLoader_LoadArchive_RecordCannotBeRead_LoadsNothing(t *testing.T) {
	p := layout.For(filepath.Join(t.TempDir(), "agent"))
	archive := filepath.Join(p.Images, "a.tar")
	must(t, os.MkdirAll(p.Images, 0o755))
	must(t, os.WriteFile(archive, []byte("not an archive"), 0o600))
	loop(t, filepath.Join(p.Marks, loadedDir, recordName(archive)))
	l := Loader{Paths: p, Log: zap.NewNop(), Progress: func(string, string, int64, int64) {}}
	if _, err := l.loadArchive(t.Context(), archive); !errors.Is(err, unix.ELOOP) {
		t.Errorf("error is %v, want that of the record", err)
	}
}

// A socket that this user may not reach, for instance, does not mean that no mote runs.
func TestConnect_UnknownError_IsNotErrNotRunning(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if _, err := connect(t.Context(), agent); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a socket the error is %v", err)
	}
	loop(t, layout.For(agent).Socket)
	if _, err := connect(t.Context(), agent); !errors.Is(err, unix.ELOOP) || errors.Is(err, ErrNotRunning) {
		t.Errorf("error is %v, want that of the socket", err)
	}
}

// listArchives returns files whatever their names end with, but nothing hidden.
func TestListArchives_WhateverTheName(t *testing.T) {
	p := layout.For(filepath.Join(t.TempDir(), "agent"))
	must(t, os.MkdirAll(filepath.Join(p.Images, "folder"), 0o755))
	must(t, os.MkdirAll(p.Imported, 0o755))
	for _, name := range []string{"app", "app.tgz", "app.tar.gz", "app.img", "app.tar.part", "images.txt",
		".app.tar.tmp"} {
		must(t, os.WriteFile(filepath.Join(p.Images, name), nil, 0o600))
	}
	must(t, os.Symlink("app.tgz", filepath.Join(p.Images, "link")))
	must(t, os.WriteFile(filepath.Join(p.Imported, "kept.tar"), nil, 0o600))
	found, err := listArchives(p.Images, p.Imported)
	must(t, err)
	var names []string
	for _, f := range found {
		names = append(names, filepath.Base(f))
	}
	want := []string{"app", "app.img", "app.tar.gz", "app.tar.part", "app.tgz", "folder", "images.txt", "link",
		"kept.tar"}
	if !slices.Equal(names, want) {
		t.Errorf("found %q, want %q", names, want)
	}
}

// What is no image archive is reported once; a bad archive at each start, without reading it again;
// both are read again once they change. A pipe is not waited for.
func TestLoader_LoadArchive_Refuses(t *testing.T) {
	dir := t.TempDir()
	p := layout.For(filepath.Join(dir, "agent"))
	must(t, os.MkdirAll(p.Root, 0o755))
	a := NewArchive()
	a.Add("blobs/sha256/x", []byte("cut"))
	pipe := filepath.Join(dir, "pipe")
	must(t, unix.Mkfifo(pipe, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	for name, row := range map[string]struct {
		data []byte
		bad  bool // an archive, but a bad one
	}{
		"note.txt":   {data: []byte("remember the milk\n")},
		"images.txt": {data: []byte("docker.io/library/app:1\n")},
		"app.tar.xz": {data: []byte{0xfd, '7', 'z', 'X', 'Z', 0, 0}},
		"empty.tar":  {},
		"cut.tar":    {data: a.Bytes(), bad: true},
		"pipe":       {},
		"folder":     {},
	} {
		file := filepath.Join(dir, name)
		if name != "pipe" && name != "folder" {
			must(t, os.WriteFile(file, row.data, 0o600))
		}
		load := func() (error, int) {
			core, logs := observer.New(zap.WarnLevel)
			l := Loader{Paths: p, Log: zap.New(core), Progress: func(string, string, int64, int64) {}}
			_, err := l.loadArchive(t.Context(), file)
			return err, logs.Len()
		}
		err, lines := load()
		if row.bad != errors.Is(err, ErrNotAnImage) || !row.bad && (err != nil || lines != 1) {
			t.Errorf("%s: error %v, %d lines", name, err, lines)
		}
		if name != "pipe" && name != "folder" {
			// Other content of the same size and time is not noticed: the file is not read.
			must(t, os.WriteFile(file, bytes.Repeat([]byte("x"), len(row.data)), 0o600))
			stamp(t, p, file)
		}
		err, lines = load()
		if row.bad != (err != nil && strings.Contains(err.Error(), "cut short")) || lines != 0 {
			t.Errorf("%s, unchanged: error %v, %d lines", name, err, lines)
		}
		if name == "pipe" || name == "folder" {
			continue
		}
		must(t, os.WriteFile(file, []byte("something else"), 0o600))
		if err, lines = load(); err != nil || lines != 1 {
			t.Errorf("%s, changed: error %v, %d lines", name, err, lines)
		}
	}
}

// stamp gives a file the time that its record has.
func stamp(t *testing.T, p layout.Paths, file string) {
	t.Helper()
	rec, err := readRecord(filepath.Join(p.Marks, loadedDir, recordName(file)))
	must(t, err)
	must(t, os.Chtimes(file, rec.ModTime, rec.ModTime))
}

// While an image is unpacked, something else may fill the disk: the import ends, and says so.
func TestDisk_Guard_EndsWhenTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		d := disk{path: "/disk", statfs: func(_ string, s *unix.Statfs_t) error {
			s.Bsize, s.Blocks, s.Bavail = 4096, 1000, 500
			if time.Since(start) > time.Minute {
				s.Bavail = 50
			}
			return nil
		}}
		err := d.guard(t.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, ErrNoRoom) || time.Since(start) > 2*time.Minute {
			t.Errorf("ended with %v after %v", err, time.Since(start))
		}
		if text := d.explain(err, 0).Error(); !strings.Contains(text, "/disk has 200 KiB free and keeps 400 KiB") {
			t.Errorf("it says %q", text)
		}
		if err := d.guard(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Errorf("an import that ended before gave %v", err)
		}
	})
}

// A stream of unknown length is stored only as long as there is room.
func TestDisk_Fill_LeavesTheReserve(t *testing.T) {
	var written bytes.Buffer
	d := disk{path: "/disk", statfs: func(_ string, s *unix.Statfs_t) error {
		s.Bsize, s.Blocks, s.Bavail = 1, 1000, uint64(300-written.Len())
		return nil
	}}
	if err := d.fill(&written, bytes.NewReader(make([]byte, 150))); err != nil || written.Len() != 150 {
		t.Errorf("%v after %d bytes", err, written.Len())
	}
	written.Reset()
	err := d.fill(&written, bytes.NewReader(make([]byte, 1000)))
	if !errors.Is(err, ErrNoRoom) || written.Len() != 200 {
		t.Errorf("%v after %d bytes", err, written.Len())
	}
}
