package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// entry is one file, directory or symbolic link of a layer.
type entry struct {
	name   string // without the leading slash
	kind   byte   // tar.TypeReg, tar.TypeDir or tar.TypeSymlink
	mode   int64
	target string // of a symbolic link
	data   []byte // of a file
}

// layer collects entries by name, so that the archive's order does not depend on the arguments'.
type layer struct {
	entries map[string]entry
}

func newLayer() *layer {
	return &layer{entries: map[string]entry{}}
}

// add puts e into the layer, and the folders above it where nothing named them yet.
func (l *layer) add(e entry) error {
	e.name = strings.TrimPrefix(path.Clean("/"+e.name), "/")
	if e.name == "" {
		return fmt.Errorf("add entry: empty name")
	}
	if old, ok := l.entries[e.name]; ok && old.kind != e.kind {
		return fmt.Errorf("add %s: it is there already as another kind of file", e.name)
	}
	l.entries[e.name] = e
	for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
		if _, ok := l.entries[dir]; !ok {
			l.entries[dir] = entry{name: dir, kind: tar.TypeDir, mode: 0o755}
		}
	}
	return nil
}

func (l *layer) addFile(src, dst string, mode int64) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return fmt.Errorf("read file for the image: %w", err)
	}
	if mode == 0 {
		info, err := os.Stat(src)
		if err != nil {
			return fmt.Errorf("read mode of file for the image: %w", err)
		}
		// What a umask left out on this machine must not change the image's digest.
		mode = 0o644
		if info.Mode()&0o111 != 0 {
			mode = 0o755
		}
	}
	return l.add(entry{
		name: dst,
		kind: tar.TypeReg,
		mode: mode,
		data: data,
	})
}

// addTree puts the files, folders and symbolic links below dir at the layer's root, with the
// permissions they have, set-user-ID among them.
func (l *layer) addTree(dir string) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("list folder for the image: %w", err)
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return fmt.Errorf("name %s in the image: %w", file, err)
		}
		if name == "." {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("read mode of file for the image: %w", err)
		}
		mode := tarMode(info.Mode())
		switch {
		case d.IsDir():
			return l.add(entry{name: name, kind: tar.TypeDir, mode: mode})
		case info.Mode().IsRegular():
			return l.addFile(file, name, mode)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return fmt.Errorf("read link for the image: %w", err)
			}
			return l.add(entry{
				name:   name,
				kind:   tar.TypeSymlink,
				mode:   0o777,
				target: target,
			})
		default:
			return fmt.Errorf("add %s: only files, folders and symbolic links can be packed", file)
		}
	})
}

// tarMode is m as tar writes it: Go keeps the three bits above the permissions elsewhere.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	for bit, is := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&is != 0 {
			mode |= bit
		}
	}
	return mode
}

// tarball writes the layer uncompressed: sorted, owned by root, without times.
func (l *layer) tarball() ([]byte, error) {
	names := make([]string, 0, len(l.entries))
	for name := range l.entries {
		names = append(names, name)
	}
	sort.Strings(names)

	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range names {
		e := l.entries[name]
		h := &tar.Header{
			Name:     e.name,
			Typeflag: e.kind,
			Mode:     e.mode,
			Linkname: e.target,
			Size:     int64(len(e.data)),
			ModTime:  time.Unix(0, 0),
			Format:   tar.FormatPAX,
		}
		if e.kind == tar.TypeDir {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("write layer entry %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("finish layer: %w", err)
	}
	return out.Bytes(), nil
}

// blob is one content-addressed piece of an image.
type blob struct {
	hex  string // SHA-256
	data []byte
}

func newBlob(data []byte) blob {
	return blob{hex: fmt.Sprintf("%x", sha256.Sum256(data)), data: data}
}

func (b blob) digest() string { return "sha256:" + b.hex }

// compress gzips data without a name or time in the header.
func compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress layer: %w", err)
	}
	return out.Bytes(), nil
}
