package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// fake is a small bundle with the given files.
func fake(t *testing.T, files map[string]string) (Manifest, func() (io.ReadCloser, error)) {
	t.Helper()
	var solid bytes.Buffer
	w := tar.NewWriter(&solid)
	var m Manifest
	for name, content := range files {
		sum := sha256.Sum256([]byte(content))
		m.Files = append(m.Files, File{
			Name:   name,
			Mode:   0o755,
			Size:   int64(len(content)),
			SHA256: hex.EncodeToString(sum[:]),
		})
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(solid.Bytes())
	m.Hash = hex.EncodeToString(sum[:])
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(solid.Bytes(), nil)
	return m, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil }
}

func TestUnpack_Repairs(t *testing.T) {
	m, open := fake(t, map[string]string{"one": "first tool", "two": "second tool"})
	for _, row := range []struct {
		name string
		harm func(t *testing.T, dir string)
		// verify is needed to see damage that changes neither size nor mode.
		verify bool
		whole  bool
	}{
		{name: "nothing", harm: func(*testing.T, string) {}, whole: true},
		{
			name:   "nothing, verified",
			harm:   func(*testing.T, string) {},
			verify: true,
			whole:  true,
		},
		{name: "file gone", harm: func(t *testing.T, d string) { must(t, os.Remove(filepath.Join(d, "current/one"))) }},
		{name: "file cut",
			harm: func(t *testing.T, d string) { must(t, os.Truncate(filepath.Join(d, "current/one"), 3)) }},
		{name: "file not executable",
			harm: func(t *testing.T, d string) { must(t, os.Chmod(filepath.Join(d, "current/one"), 0o644)) }},
		{name: "file changed", harm: func(t *testing.T, d string) {
			must(t, os.WriteFile(filepath.Join(d, "current/one"), []byte("FIRST tool"), 0o755))
		}, verify: true},
		{name: "file replaced by a folder", harm: func(t *testing.T, d string) {
			must(t, os.Remove(filepath.Join(d, "current/one")))
			must(t, os.Mkdir(filepath.Join(d, "current/one"), 0o755))
		}},
		{name: "mark gone",
			harm: func(t *testing.T, d string) { must(t, os.Remove(filepath.Join(d, "current", completeMark))) }},
		{name: "link gone", harm: func(t *testing.T, d string) { must(t, os.Remove(filepath.Join(d, "current"))) },
			whole: true},
		{name: "link to nothing", harm: func(t *testing.T, d string) {
			must(t, os.Remove(filepath.Join(d, "current")))
			must(t, os.Symlink("nothing", filepath.Join(d, "current")))
		}, whole: true},
		{name: "file in place of the link", harm: func(t *testing.T, d string) {
			must(t, os.Remove(filepath.Join(d, "current")))
			must(t, os.WriteFile(filepath.Join(d, "current"), nil, 0o600))
		}, whole: true},
		{name: "all gone", harm: func(t *testing.T, d string) { must(t, os.RemoveAll(d)) }},
		{name: "interrupted unpacking", harm: func(t *testing.T, d string) {
			must(t, os.Mkdir(filepath.Join(d, tempPrefix+"123"), 0o755))
		}, whole: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "bin")
			if _, err := unpack(Options{Dir: dir}, m, open); err != nil {
				t.Fatal(err)
			}
			row.harm(t, dir)
			b, err := unpack(Options{Dir: dir, VerifyContent: row.verify}, m, open)
			if err != nil {
				t.Fatal(err)
			}
			if b.Unpacked == row.whole {
				t.Errorf("unpacked again: %v", b.Unpacked)
			}
			for name, want := range map[string]string{"one": "first tool", "two": "second tool"} {
				got, err := os.ReadFile(b.Path(name))
				if err != nil || string(got) != want {
					t.Errorf("%s is %q, %v", name, got, err)
				}
			}
			if err := Verify(b.Dir, m, true); err != nil {
				t.Error(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 2 {
				t.Errorf("folder holds %v, %v; want the bundle and the link", entries, err)
			}
		})
	}
}

// TestUnpack_KeepsPrevious upgrades twice: the bundle of the version before stays, as its shims
// still run, older ones go.
func TestUnpack_KeepsPrevious(t *testing.T) {
	dir := t.TempDir()
	var hashes []string
	for _, content := range []string{"1", "2", "3"} {
		m, open := fake(t, map[string]string{"tool": content})
		b, err := unpack(Options{Dir: dir}, m, open)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(b.Path("tool")); err != nil || string(got) != content {
			t.Errorf("tool is %q, %v", got, err)
		}
		hashes = append(hashes, m.Hash[:16])
		// A restart of the same version changes nothing.
		if _, err := unpack(Options{Dir: dir}, m, open); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{false, true, true} {
		if _, err := os.Stat(filepath.Join(dir, hashes[i])); (err == nil) != want {
			t.Errorf("bundle %d: %v", i, err)
		}
	}
}

// TestUnpack_RefusesDamagedArchive must not put anything in place.
func TestUnpack_RefusesDamagedArchive(t *testing.T) {
	m, open := fake(t, map[string]string{"one": "first tool"})
	m.Files[0].SHA256 = hex.EncodeToString(make([]byte, 32))
	dir := t.TempDir()
	if _, err := unpack(Options{Dir: dir}, m, open); err == nil {
		t.Error("a file with the wrong hash was unpacked")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("folder holds %v, %v", entries, err)
	}
}

// A folder that cannot be looked into is not a damaged one.
func TestUnpack_CannotCheck_ReplacesNothing(t *testing.T) {
	m, open := fake(t, map[string]string{"one": "first tool"})
	dir := t.TempDir()
	target := filepath.Join(dir, m.Hash[:16])
	must(t, os.Symlink(target, target)) // a loop: every access fails with ELOOP
	_, err := unpack(Options{Dir: dir}, m, open)
	if !errors.Is(err, unix.ELOOP) || errors.Is(err, ErrDamaged) {
		t.Errorf("error is %v, want that of the file system", err)
	}
	if _, err := os.Readlink(target); err != nil {
		t.Errorf("the folder was replaced: %v", err)
	}
}

// TestEmbedded_Manifest checks the bundle this build carries, if it does.
func TestEmbedded_Manifest(t *testing.T) {
	m, err := ReadManifest()
	if err != nil {
		t.Skip(err)
	}
	have := map[string]bool{}
	for _, f := range m.Files {
		have[f.Name] = true
	}
	for _, name := range []string{Runc, Shim, PauseArchive, "bridge", "host-local", "portmap"} {
		if !have[name] {
			t.Errorf("%s is not in the bundle", name)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Several commands may be the first ones at the same time.
func TestUnpack_AtOnce(t *testing.T) {
	m, open := fake(t, map[string]string{"one": strings.Repeat("tool", 1<<16), "two": "second tool"})
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			b, err := unpack(Options{Dir: dir}, m, open)
			if err != nil {
				t.Error(err)
				return
			}
			if err := Verify(b.Dir, m, true); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
