package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// entryName is the one name of a file in an archive. Tools that pack a folder write "./index.json",
// or a path from the root.
func entryName(name string) string { return path.Clean("/" + name)[1:] }

// linkTarget is the name that a link of an archive leads to, as unpacking it into a folder would.
func linkTarget(h *tar.Header) string {
	switch {
	case h.Typeflag == tar.TypeLink:
		return entryName(h.Linkname)
	case path.IsAbs(h.Linkname):
		return "" // it leaves the archive
	}
	return entryName(path.Join(path.Dir(entryName(h.Name)), h.Linkname))
}

// resolve follows the links of an archive to a file.
func (c archiveContents) resolve(name string) (string, bool) {
	name = entryName(name)
	for range len(c.links) + 1 {
		if _, ok := c.blobs[name]; ok {
			return name, true
		}
		target, ok := c.links[name]
		if !ok {
			break
		}
		name = target
	}
	return name, false
}

// fileOf returns the file that a Docker manifest means. If the archive has it under another name,
// the alias is added: containerd looks files up by the text in the manifest.
func (c archiveContents) fileOf(text string, aliases map[string]string) (string, error) {
	if clean := path.Clean(text); path.IsAbs(text) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", notAnImage("its %s names a file %q outside of the archive", dockerManifest, text)
	}
	name, ok := c.resolve(text)
	if !ok {
		return "", notAnImage("its %s names the file %s, which is missing", dockerManifest, text)
	}
	if name != text {
		aliases[text] = name
	}
	return name, nil
}

// plainTar reads an archive as containerd's importer takes it: files with their one name, and the
// aliases as links at its end. The importer compares names as text, knows links by the names in
// their headers only, and neither hard links nor links to links.
type plainTar struct {
	from    *tar.Reader
	to      *tar.Writer
	aliases map[string]string

	buffer bytes.Buffer // what was written and is not read yet
	left   int64        // of the current file
	done   bool
}

func newPlainTar(r io.Reader, aliases map[string]string) *plainTar {
	p := &plainTar{from: tar.NewReader(r), aliases: aliases}
	p.to = tar.NewWriter(&p.buffer)
	return p
}

func (p *plainTar) Read(into []byte) (int, error) {
	for p.buffer.Len() == 0 {
		if p.done {
			return 0, io.EOF
		}
		if err := p.step(); err != nil {
			return 0, fmt.Errorf("read image archive: %w", err)
		}
	}
	return p.buffer.Read(into)
}

// step writes the next header, or a piece of the current file, to the buffer.
func (p *plainTar) step() error {
	if p.left > 0 {
		n, err := io.CopyN(p.to, p.from, min(p.left, 64<<10))
		p.left -= n
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	h, err := p.from.Next()
	switch {
	case errors.Is(err, io.EOF):
		return p.finish()
	case err != nil:
		return err
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse:
		return nil
	}
	p.left = h.Size
	return p.to.WriteHeader(&tar.Header{
		Name:     entryName(h.Name),
		Typeflag: tar.TypeReg,
		Mode:     0o644,
		Size:     h.Size,
	})
}

func (p *plainTar) finish() error {
	p.done = true
	for _, alias := range slices.Sorted(maps.Keys(p.aliases)) {
		target, err := filepath.Rel(path.Dir(alias), p.aliases[alias])
		if err != nil {
			return err
		}
		if err := p.to.WriteHeader(&tar.Header{Name: alias, Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
			return err
		}
	}
	return p.to.Close()
}
