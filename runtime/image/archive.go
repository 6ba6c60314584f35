package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
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

// notAnImage returns an [ErrNotAnImage] that says what is wrong with the archive.
func notAnImage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNotAnImage, fmt.Errorf(format, args...))
}

// decompress returns the tar stream of an archive. Its first bytes say whether it is plain, gzip or
// zstd.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	switch {
	case len(head) == 0:
		return nil, notAnImage("the file is empty")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, notAnImage("gzip: %w", err)
		}
		return zr, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20),
			zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, notAnImage("zstd: %w", err)
		}
		return zr.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return nil, notAnImage("it is compressed with xz: unpack it with `xz -d` first")
	}
	return io.NopCloser(br), nil
}

// archiveBlob describes one file of an archive.
type archiveBlob struct {
	digest digest.Digest
	size   int64
}

// archiveContents is what checking an archive needs: digests of all files, and the text of those
// that may be JSON.
type archiveContents struct {
	blobs map[string]archiveBlob
	json  map[string][]byte
	links map[string]string
}

// checkArchive reads an archive to its end, compares every blob with its digest, and returns the
// names of its images for this machine. It changes nothing, so that a bad archive is refused before
// anything is imported.
func checkArchive(r io.Reader) ([]string, error) {
	tr, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer tr.Close()
	c, err := readContents(tr)
	if err != nil {
		return nil, err
	}
	var names []string
	_, isOCI := c.json[v1.ImageLayoutFile]
	_, isDocker := c.json[dockerManifest]
	switch {
	case isOCI:
		names, err = c.checkOCI()
	case isDocker:
		names, err = c.checkDocker()
	default:
		return nil, notAnImage("it has neither %s nor %s", v1.ImageLayoutFile, dockerManifest)
	}
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, notAnImage("its images have no names: save it with a name and tag, as in `docker save NAME:TAG`")
	}
	return names, nil
}

func readContents(r io.Reader) (archiveContents, error) {
	c := archiveContents{blobs: map[string]archiveBlob{}, json: map[string][]byte{}, links: map[string]string{}}
	kept := 0
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, notAnImage("read tar: %w", err)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeSymlink:
			c.links[name] = path.Join(path.Dir(name), h.Linkname)
			continue
		case tar.TypeReg:
		default:
			continue
		}
		digester := digest.Canonical.Digester()
		body := io.TeeReader(tr, digester.Hash())
		if h.Size <= maxJSON && kept < maxKeptJSON {
			data, err := io.ReadAll(body)
			if err != nil {
				return c, notAnImage("read %s: %w", name, err)
			}
			if len(data) > 0 && (data[0] == '{' || data[0] == '[') {
				c.json[name] = data
				kept += len(data)
			}
		} else if _, err := io.Copy(io.Discard, body); err != nil {
			return c, notAnImage("read %s: %w", name, err)
		}
		c.blobs[name] = archiveBlob{digest: digester.Digest(), size: h.Size}
	}
	if len(c.blobs) == 0 {
		return c, notAnImage("it holds no files")
	}
	// The compressor's checksum follows the end of the tar.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return c, notAnImage("read to the end: %w", err)
	}
	return c, nil
}

func (c archiveContents) checkOCI() ([]string, error) {
	var layout v1.ImageLayout
	if err := json.Unmarshal(c.json[v1.ImageLayoutFile], &layout); err != nil {
		return nil, notAnImage("parse %s: %w", v1.ImageLayoutFile, err)
	}
	if layout.Version != v1.ImageLayoutVersion {
		return nil, notAnImage("its layout version is %q, not %s", layout.Version, v1.ImageLayoutVersion)
	}
	for name, b := range c.blobs {
		if rest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && rest != b.digest.Encoded() {
			return nil, notAnImage("blob %s is damaged: its content has digest %s", rest, b.digest)
		}
	}
	data, ok := c.json[v1.ImageIndexFile]
	if !ok {
		return nil, notAnImage("it has no %s", v1.ImageIndexFile)
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, notAnImage("parse %s: %w", v1.ImageIndexFile, err)
	}
	if len(index.Manifests) == 0 {
		return nil, notAnImage("its %s lists no image", v1.ImageIndexFile)
	}
	var names []string
	for _, m := range index.Manifests {
		usable, err := c.checkDescriptor(m)
		if err != nil {
			return nil, err
		}
		if !usable {
			continue
		}
		if name := imageNameOf(m.Annotations); name != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		if p := c.onlyPlatforms(index.Manifests); p != "" {
			return nil, notAnImage("it is for %s, this machine is %s", p, platforms.DefaultString())
		}
	}
	return names, nil
}

// checkDescriptor checks that the content below a descriptor is in the archive, and reports whether
// this machine can use any of it.
func (c archiveContents) checkDescriptor(d v1.Descriptor) (usable bool, err error) {
	if d.Platform != nil && !platforms.Default().Match(*d.Platform) {
		return false, nil
	}
	if err := c.present(d); err != nil {
		return false, err
	}
	data := c.json[blobName(d.Digest)]
	switch {
	case images.IsIndexType(d.MediaType):
		var index v1.Index
		if err := json.Unmarshal(data, &index); err != nil {
			return false, notAnImage("parse index %s: %w", d.Digest, err)
		}
		for _, m := range index.Manifests {
			ok, err := c.checkDescriptor(m)
			if err != nil {
				return false, err
			}
			usable = usable || ok
		}
		return usable, nil
	case images.IsManifestType(d.MediaType):
		return c.checkManifest(d.Digest, data)
	}
	return false, notAnImage("%s has the unknown type %q", d.Digest, d.MediaType)
}

func (c archiveContents) checkManifest(dgst digest.Digest, data []byte) (usable bool, err error) {
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return false, notAnImage("parse manifest %s: %w", dgst, err)
	}
	if err := c.present(m.Config); err != nil {
		return false, err
	}
	var config v1.Image
	if err := json.Unmarshal(c.json[blobName(m.Config.Digest)], &config); err != nil {
		return false, notAnImage("parse image configuration %s: %w", m.Config.Digest, err)
	}
	if config.OS != "" && !platforms.Default().Match(platforms.Normalize(config.Platform)) {
		return false, nil
	}
	for _, l := range m.Layers {
		if err := c.present(l); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c archiveContents) present(d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return notAnImage("digest %q: %w", d.Digest, err)
	}
	b, ok := c.blobs[blobName(d.Digest)]
	if !ok {
		return notAnImage("blob %s is missing", d.Digest)
	}
	if b.size != d.Size {
		return notAnImage("blob %s has %d bytes, its descriptor says %d", d.Digest, b.size, d.Size)
	}
	return nil
}

// onlyPlatforms names the platforms of an archive's images.
func (c archiveContents) onlyPlatforms(manifests []v1.Descriptor) string {
	var found []string
	for _, m := range manifests {
		if m.Platform != nil && !platforms.Default().Match(*m.Platform) {
			found = append(found, platforms.Format(*m.Platform))
			continue
		}
		var manifest v1.Manifest
		var config v1.Image
		if json.Unmarshal(c.json[blobName(m.Digest)], &manifest) == nil &&
			json.Unmarshal(c.json[blobName(manifest.Config.Digest)], &config) == nil &&
			config.OS != "" && !platforms.Default().Match(platforms.Normalize(config.Platform)) {
			found = append(found, platforms.Format(config.Platform))
		}
	}
	return strings.Join(found, ", ")
}

func (c archiveContents) checkDocker() ([]string, error) {
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(c.json[dockerManifest], &manifests); err != nil {
		return nil, notAnImage("parse %s: %w", dockerManifest, err)
	}
	var names, others []string
	for _, m := range manifests {
		data, ok := c.json[path.Clean(m.Config)]
		if !ok {
			return nil, notAnImage("image configuration %s is missing", m.Config)
		}
		var config v1.Image
		if err := json.Unmarshal(data, &config); err != nil {
			return nil, notAnImage("parse image configuration %s: %w", m.Config, err)
		}
		// Docker names the file for its digest.
		if want := strings.TrimSuffix(path.Base(m.Config), ".json"); len(want) == 64 &&
			want != c.blobs[path.Clean(m.Config)].digest.Encoded() {
			return nil, notAnImage("image configuration %s is damaged", m.Config)
		}
		if err := c.checkDockerLayers(m.Layers, config.RootFS.DiffIDs); err != nil {
			return nil, err
		}
		if config.OS != "" && !platforms.Default().Match(platforms.Normalize(config.Platform)) {
			others = append(others, platforms.Format(config.Platform))
			continue
		}
		for _, tag := range m.RepoTags {
			name, err := reference.ParseDockerRef(tag)
			if err != nil {
				return nil, notAnImage("image name %q: %w", tag, err)
			}
			names = append(names, name.String())
		}
	}
	if len(names) == 0 && len(others) > 0 {
		return nil, notAnImage("it is for %s, this machine is %s", strings.Join(others, ", "),
			platforms.DefaultString())
	}
	return names, nil
}

func (c archiveContents) checkDockerLayers(layers []string, diffIDs []digest.Digest) error {
	if len(layers) != len(diffIDs) {
		return notAnImage("it has %d layers, its configuration names %d", len(layers), len(diffIDs))
	}
	for i, l := range layers {
		name := path.Clean(l)
		if target, ok := c.links[name]; ok {
			name = target
		}
		b, ok := c.blobs[name]
		if !ok {
			return notAnImage("layer %s is missing", l)
		}
		// Layers in a `docker save` archive are plain tars whose digest the configuration names;
		// newer versions also write them as OCI blobs.
		if rest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && rest != b.digest.Encoded() {
			return notAnImage("layer %s is damaged", l)
		} else if !ok && b.digest != diffIDs[i] {
			return notAnImage("layer %s is damaged or compressed: its digest is %s, not %s", l, b.digest, diffIDs[i])
		}
	}
	return nil
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
