package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
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
