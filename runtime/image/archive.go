package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrNotAnImage is wrapped when a file is not an image archive, or is damaged, incomplete or for
// another architecture. Nothing of it was imported.
var ErrNotAnImage = errors.New("not a usable image archive")

const (
	// maxJSON is the largest index, manifest or configuration read to memory. containerd's own
	// limit is of the same order.
	maxJSON = 8 << 20
	// maxKeptJSON bounds the memory that an archive full of manifests can take.
	maxKeptJSON = 64 << 20

	dockerManifest = "manifest.json"
)

// errNoArchive is the [ErrNotAnImage] of a file that is no image archive at all: a note, a list,
// something else that is compressed.
var errNoArchive = fmt.Errorf("%w", ErrNotAnImage)

// notAnImage returns an [ErrNotAnImage] that says what is wrong with the archive.
func notAnImage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNotAnImage, fmt.Errorf(format, args...))
}

// noArchive returns an [errNoArchive] that says what the file is instead.
func noArchive(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errNoArchive, fmt.Errorf(format, args...))
}

var (
	gzipMagic  = []byte{0x1f, 0x8b}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	bzip2Magic = []byte("BZh")
)

// otherCompressions are those an archive must be unpacked from first.
var otherCompressions = []struct {
	magic      []byte
	name, tool string
}{
	{[]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "xz", "xz -d"},
	{[]byte{0x04, 0x22, 0x4d, 0x18}, "lz4", "lz4 -d"},
	{[]byte("PK\x03\x04"), "zip", "unzip"},
	{[]byte{'7', 'z', 0xbc, 0xaf, 0x27, 0x1c}, "7-Zip", "7z x"},
}

// decompress returns the tar stream of an archive. Its first bytes say how it is compressed.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	if len(head) == 0 {
		return nil, noArchive("the file is empty")
	}
	if text, err := br.Peek(512); isImageList(text, err != nil) {
		return nil, noArchive("it is a list of image names, which k3s pulls at start: mote pulls an " +
			"image when a pod needs it")
	}
	for _, o := range otherCompressions {
		if bytes.HasPrefix(head, o.magic) {
			return nil, noArchive("it is compressed with %s: unpack it with `%s` first", o.name, o.tool)
		}
	}
	if bytes.HasPrefix(head, bzip2Magic) {
		return io.NopCloser(bzip2.NewReader(br)), nil
	}
	zr, _, err := unzip(br, head)
	return zr, err
}

// isImageList reports whether a text holds nothing but the names of images, a line each. The last
// line counts only if the text is whole.
func isImageList(text []byte, whole bool) bool {
	lines := strings.Split(string(text), "\n")
	if !whole {
		lines = lines[:len(lines)-1]
	}
	found := 0
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, err := reference.ParseNormalizedNamed(line); err != nil || !strings.ContainsAny(line, ":/") {
			return false
		}
		found++
	}
	return found > 0
}

// unzip returns the content of a stream that begins with head, and whether it was compressed, with
// gzip or zstd.
func unzip(r io.Reader, head []byte) (_ io.ReadCloser, compressed bool, err error) {
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		zr, err := gzip.NewReader(r)
		if err != nil {
			return nil, true, notAnImage("gzip: %w", err)
		}
		return zr, true, nil
	case bytes.HasPrefix(head, zstdMagic), isZstdSkippable(head):
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20),
			zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, true, notAnImage("zstd: %w", err)
		}
		return zr.IOReadCloser(), true, nil
	}
	return io.NopCloser(r), false, nil
}

// isZstdSkippable reports whether a stream begins with a frame that holds no data, as pzstd writes
// one, and tools that put a table of contents into layers.
func isZstdSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

// archiveBlob describes one file of an archive.
type archiveBlob struct {
	digest digest.Digest
	size   int64
	layer  unpackedLayer
}

// unpackedLayer describes the tar in a file of an archive, for a file that is a layer.
type unpackedLayer struct {
	// digest is that of the tar itself, whatever it is compressed with.
	digest digest.Digest
	// size is the space its files take, and at least the length of the tar.
	size int64
	// tooLarge is set if it takes more than there is: the rest was not read, and digest is unknown.
	tooLarge bool
	// err is why it cannot be unpacked.
	err error
}

// archiveContents is what checking an archive needs: digests of all files, and the text of those
// that may be JSON.
type archiveContents struct {
	blobs map[string]archiveBlob
	json  map[string][]byte
	// links are symbolic and hard ones, with the names they lead to.
	links map[string]string
	// size is that of all files.
	size int64
}

// readContents reads an archive to its end. It fails with [ErrNoRoom] once the files take more than
// limit.
func readContents(r io.Reader, limit int64) (archiveContents, error) {
	c := archiveContents{blobs: map[string]archiveBlob{}, json: map[string][]byte{}, links: map[string]string{}}
	kept := 0
	tr := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && first {
			return c, noArchive("it is no tar (%w)", err)
		}
		if err != nil {
			return c, notAnImage("read tar: %w", err)
		}
		// As when it is unpacked, the last entry of a name counts.
		name := entryName(h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink, tar.TypeLink:
			delete(c.blobs, name)
			delete(c.json, name)
			c.links[name] = linkTarget(h)
			continue
		case tar.TypeReg, tar.TypeGNUSparse:
			delete(c.links, name)
			delete(c.json, name)
		default:
			continue
		}
		if c.size += h.Size; c.size > limit {
			return c, ErrNoRoom
		}
		digester := digest.Canonical.Digester()
		body := io.TeeReader(tr, digester.Hash())
		var layer unpackedLayer
		if h.Size <= maxJSON && kept < maxKeptJSON {
			data, err := io.ReadAll(body)
			if err != nil {
				return c, notAnImage("read %s: %w", name, err)
			}
			if mayBeJSON(data) {
				c.json[name] = data
				kept += len(data)
			}
			// A tar may begin like JSON, too: with the name of its first file.
			layer = scanLayer(bytes.NewReader(data), limit)
		} else {
			layer = scanLayer(body, limit)
			if _, err := io.Copy(io.Discard, body); err != nil {
				return c, notAnImage("read %s: %w", name, err)
			}
		}
		c.blobs[name] = archiveBlob{digest: digester.Digest(), size: h.Size, layer: layer}
	}
	if len(c.blobs) == 0 {
		return c, noArchive("it holds no files")
	}
	// The compressor's checksum follows the end of the tar.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return c, notAnImage("read to the end: %w", err)
	}
	return c, nil
}

func mayBeJSON(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return len(data) > 0 && (data[0] == '{' || data[0] == '[')
}

// block is the least that a file takes on disk.
const block = 4096

// scanLayer reads a layer, unless it takes more space than limit. What it leaves unread is the
// caller's.
func scanLayer(r io.Reader, limit int64) unpackedLayer {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return unpackedLayer{err: err}
	}
	zr, compressed, err := unzip(br, head)
	if err != nil {
		return unpackedLayer{err: err}
	}
	defer zr.Close()
	digester := digest.Canonical.Digester()
	// One byte more than the limit shows that there is more.
	limit = min(limit, math.MaxInt64-1)
	stream := &countedReader{r: io.TeeReader(io.LimitReader(zr, limit+1), digester.Hash())}
	files := int64(0)
	// Files may be larger than the tar: the holes of sparse ones are not in it.
	for tr := tar.NewReader(stream); files <= limit && stream.n <= limit; {
		h, err := tr.Next()
		if err != nil {
			break // not a tar, or cut: unpacking it will tell, and its digest
		}
		if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse {
			files += (h.Size + block - 1) / block * block
		}
	}
	if files > limit {
		return unpackedLayer{size: files, tooLarge: true}
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		if !compressed {
			return unpackedLayer{err: err}
		}
		return unpackedLayer{err: notAnImage("decompress: %w", err)}
	}
	if stream.n > limit {
		return unpackedLayer{size: stream.n, tooLarge: true}
	}
	return unpackedLayer{digest: digester.Digest(), size: max(files, stream.n)}
}

// countedReader counts what was read.
type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// namedDigest returns the digest that the name of a file claims for its content, if it does: tools
// name files by digest, with or without the algorithm and an ending.
func namedDigest(name string) (digest.Digest, bool) {
	base, _, _ := strings.Cut(strings.TrimPrefix(path.Base(name), "sha256:"), ".")
	if _, err := hex.DecodeString(base); err != nil || len(base) != 64 {
		return "", false
	}
	return digest.NewDigestFromEncoded(digest.SHA256, base), true
}

func blobName(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}

// imageNameOf returns the full, normalised name an index entry carries, or "". The OCI annotation
// often is a bare tag, which names nothing.
func imageNameOf(annotations map[string]string) string {
	name := annotations[images.AnnotationImageName]
	if name == "" {
		name = annotations[v1.AnnotationRefName]
		if !strings.ContainsAny(name, ":/") {
			return ""
		}
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return ref.String()
}
