package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// readArchive returns the files of a tar stream by name.
func readArchive(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatalf("read archive: %v", err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatalf("read %s: %v", h.Name, err)
		}
		if h.Typeflag == tar.TypeSymlink {
			data = []byte("-> " + h.Linkname)
		}
		files[h.Name] = data
	}
}

func build(t *testing.T, args ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	if err := run(append([]string{"-o", out}, args...)); err != nil {
		t.Fatalf("run: %v", err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRun_SameInput_SameBytes(t *testing.T) {
	src := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(src, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	one := build(t, "-name", "example.com/a:1", "-file", src+":/app", "-dir", "/tmp:1777")
	if err := os.Chmod(src, 0o700); err != nil { // as under another umask
		t.Fatal(err)
	}
	two := build(t, "-name", "example.com/a:1", "-dir", "/tmp:1777", "-file", src+":/app")
	if !bytes.Equal(one, two) {
		t.Error("the order of arguments or the file's group bits changed the archive")
	}
	three := build(t, "-name", "example.com/a:1", "-dir", "/tmp:755", "-file", src+":/app")
	if bytes.Equal(one, three) {
		t.Error("another mode gave the same archive")
	}
}

// Every digest an archive names must be that of the blob it carries, layers must be listed in
// order, and each name must be found by both kinds of importer.
func TestRun_TwoLayersTwoNames_DigestsAndNamesResolve(t *testing.T) {
	data := build(t, "-name", "example.com/a:1", "-name", "example.com/b:latest", "-text", `/etc/passwd=root:x:0:0\n`,
		"-layer", "-text", "/hello=hi", "-link", "/bin/sh:/hello", "-entrypoint", "/hello", "-env", "A=b", "-expose",
		"80/tcp", "-user", "1000")
	files := readArchive(t, bytes.NewReader(data))

	for name, content := range files {
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && newBlob(content).hex != hex {
			t.Errorf("blob %s holds other bytes", name)
		}
	}
	var top index
	decode(t, files["index.json"], &top)
	var names []string
	for _, d := range top.Manifests {
		names = append(names, d.Annotations[annotationName])
	}
	if want := []string{"example.com/a:1", "example.com/b:latest"}; !slices.Equal(names, want) {
		t.Errorf("names %v, want %v", names, want)
	}
	var m manifest
	decode(t, files["blobs/sha256/"+strings.TrimPrefix(top.Manifests[0].Digest, "sha256:")], &m)
	if len(m.Layers) != 2 {
		t.Fatalf("%d layers, want 2", len(m.Layers))
	}
	var cfg imageConfig
	decode(t, files["blobs/sha256/"+strings.TrimPrefix(m.Config.Digest, "sha256:")], &cfg)
	wants := []map[string]string{{"etc/passwd": "root:x:0:0\n"}, {"hello": "hi", "bin/sh": "-> /hello"}}
	for i, d := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]))
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if got := newBlob(plain).digest(); got != cfg.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: diff id %s, want %s", i, cfg.RootFS.DiffIDs[i], got)
		}
		inside := readArchive(t, bytes.NewReader(plain))
		for name, want := range wants[i] {
			if string(inside[name]) != want {
				t.Errorf("layer %d: %s holds %q, want %q", i, name, inside[name], want)
			}
		}
	}
	var docker []dockerImage
	decode(t, files["manifest.json"], &docker)
	if _, ok := files[docker[0].Config]; !ok || len(docker[0].Layers) != 2 || len(docker[0].RepoTags) != 2 {
		t.Errorf("manifest.json does not resolve: %+v", docker)
	}
}

// A tree brings what a plain copy would lose: links, empty folders, and the bit that makes a
// program run as its owner.
func TestRun_Tree_LinksAndModesKept(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755),
		os.Mkdir(filepath.Join(dir, "tmp"), 0o755),
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky),
		os.WriteFile(filepath.Join(dir, "usr/bin/su"), []byte("program"), 0o755),
		os.Chmod(filepath.Join(dir, "usr/bin/su"), 0o755|os.ModeSetuid),
		os.Symlink("usr/bin", filepath.Join(dir, "bin")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l := newLayer()
	if err := l.addTree(dir); err != nil {
		t.Fatal(err)
	}
	want := map[string]entry{
		"usr":     {name: "usr", kind: tar.TypeDir, mode: 0o755},
		"usr/bin": {name: "usr/bin", kind: tar.TypeDir, mode: 0o755},
		"usr/bin/su": {
			name: "usr/bin/su",
			kind: tar.TypeReg,
			mode: 0o4755,
			data: []byte("program"),
		},
		"tmp": {name: "tmp", kind: tar.TypeDir, mode: 0o1777},
		"bin": {
			name:   "bin",
			kind:   tar.TypeSymlink,
			mode:   0o777,
			target: "usr/bin",
		},
	}
	if !reflect.DeepEqual(l.entries, want) {
		t.Errorf("got %+v, want %+v", l.entries, want)
	}
}

func TestRun_BadArguments_Refused(t *testing.T) {
	for _, row := range []struct {
		name string
		args []string
	}{
		{"no name", []string{"-o", "x"}},
		{"missing file", []string{"-o", "x", "-name", "a", "-file", "/no/such/file:/a"}},
		{"mapping without target", []string{"-o", "x", "-name", "a", "-file", "/bin/true"}},
		{"mode not octal", []string{"-o", "x", "-name", "a", "-dir", "/tmp:9"}},
		{"words left over", []string{"-o", "x", "-name", "a", "b"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if err := run(row.args); err == nil {
				t.Error("accepted")
			}
			if left, _ := os.ReadDir("."); len(left) != 0 {
				t.Errorf("left %s behind", left[0].Name())
			}
		})
	}
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("decode %T: %v", into, err)
	}
}
