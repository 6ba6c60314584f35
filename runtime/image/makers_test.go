package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archive is a tar that a test puts together file by file.
type Archive struct {
	buf bytes.Buffer
	tw  *tar.Writer
	// rename changes the names of files, if set.
	rename func(string) string
}

// NewArchive begins an archive.
func NewArchive() *Archive {
	a := &Archive{}
	a.tw = tar.NewWriter(&a.buf)
	return a
}

// Add adds a file.
func (a *Archive) Add(name string, data []byte) {
	if a.rename != nil {
		name = a.rename(name)
	}
	check(a.tw.WriteHeader(regular(name, int64(len(data)))))
	_, err := a.tw.Write(data)
	check(err)
}

// AddZeros adds a file of zeros.
func (a *Archive) AddZeros(name string, size int64) {
	check(a.tw.WriteHeader(regular(name, size)))
	_, err := io.CopyN(a.tw, zeros{}, size)
	check(err)
}

func regular(name string, size int64) *tar.Header {
	return &tar.Header{
		Name:     name,
		Typeflag: tar.TypeReg,
		Mode:     0o755,
		Size:     size,
	}
}

// Link adds a symbolic link.
func (a *Archive) Link(name, to string) {
	check(a.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}))
}

// AddBlob adds a blob of an OCI layout and returns its descriptor.
func (a *Archive) AddBlob(mediaType string, data []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	a.Add(blobName(d.Digest), data)
	return d
}

// AddIndex ends an OCI layout.
func (a *Archive) AddIndex(entries ...v1.Descriptor) {
	a.Add(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+v1.ImageLayoutVersion+`"}`))
	a.Add(v1.ImageIndexFile, encode(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: entries,
	}))
}

// Bytes ends the archive.
func (a *Archive) Bytes() []byte {
	check(a.tw.Close())
	return a.buf.Bytes()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	check(err)
	return data
}

// Gzip compresses.
func Gzip(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(data)
	check(err)
	check(w.Close())
	return buf.Bytes()
}

// Zstd compresses.
func Zstd(data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	check(err)
	return w.EncodeAll(data, nil)
}

// Plain leaves data as it is.
func Plain(data []byte) []byte { return data }

// LayerOf is a layer with one small file.
func LayerOf(text string) []byte {
	a := NewArchive()
	a.Add("x", []byte(text))
	return a.Bytes()
}

func configFor(p v1.Platform, layers ...[]byte) []byte {
	c := v1.Image{Platform: p, RootFS: v1.RootFS{Type: "layers"}, Config: v1.ImageConfig{Cmd: []string{"/x"}}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return encode(c)
}

// AddImage adds an image of one layer to an OCI layout, and returns its manifest. The layer is left
// out if pack is nil.
func (a *Archive) AddImage(p v1.Platform, layer []byte, pack func([]byte) []byte) v1.Descriptor {
	config := a.AddBlob(v1.MediaTypeImageConfig, configFor(p, layer))
	packed := layer
	if pack != nil {
		packed = pack(layer)
	}
	l := v1.Descriptor{
		MediaType: v1.MediaTypeImageLayerGzip,
		Digest:    digest.FromBytes(packed),
		Size:      int64(len(packed)),
	}
	if pack != nil {
		a.Add(blobName(l.Digest), packed)
	}
	d := a.AddBlob(v1.MediaTypeImageManifest, encode(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    config,
		Layers:    []v1.Descriptor{l},
	}))
	d.Platform = &p
	return d
}

// Named gives an entry of an index a name, as containerd and docker do.
func Named(d v1.Descriptor, name string) v1.Descriptor {
	d.Annotations = map[string]string{"io.containerd.image.name": name}
	return d
}

// OnePlatform is the archive of an image whose index lists more platforms than the archive holds:
// what saving one platform makes.
func OnePlatform(name string, lists, holds []string) []byte {
	a := NewArchive()
	var entries []v1.Descriptor
	for _, text := range lists {
		p, err := platforms.Parse(text)
		check(err)
		into := a
		if !strings.Contains(strings.Join(holds, " ")+" ", text+" ") {
			into = NewArchive() // only its descriptor is used
		}
		entries = append(entries, into.AddImage(p, LayerOf("for "+text), Gzip))
	}
	index := a.AddBlob(v1.MediaTypeImageIndex, encode(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: entries,
	}))
	a.AddIndex(Named(index, name))
	return a.Bytes()
}

// Maker is a tool that writes archives in Docker layout.
type Maker struct {
	Name string
	// Pack compresses layers; File names one by the digests of the packed and the plain one.
	Pack func([]byte) []byte
	File func(packed, plain digest.Digest) string
	// Config names the configuration by its digest.
	Config func(d digest.Digest) string
	// Link adds the second of two equal layers as a link to the file of the first, and returns its
	// name; nil names the same file twice.
	Link func(a *Archive, file string) string
	// InTar is how the tar has a name that manifest.json has; nil leaves it.
	InTar func(name string) string
}

func json64(d digest.Digest) string { return d.Encoded() + ".json" }

// Makers are known tools.
var Makers = []Maker{
	{"docker 26", Plain, func(_, plain digest.Digest) string { return blobName(plain) }, blobName, nil, nil},
	{"docker 24", Plain, plainFolder, json64, symlink, nil},
	{"docker before 25, one file", Plain, plainFolder, json64, nil, nil},
	{"docker 1.10, links between links", Plain, plainFolder, json64, linkToLink, nil},
	{"docker save, unpacked and packed by tar", Plain, plainFolder, json64, symlink, dotted},
	{"docker save, packed by tar with hard links", Plain, plainFolder, json64, hardLink, nil},
	{"the same with ./", Gzip, plainFolder, json64, hardLink, dotted},
	{"packed from the root", Plain, plainFolder, json64, hardLink, func(name string) string { return "/" + name }},
	{"manifest with ./ over a tar without", Plain, func(_, plain digest.Digest) string {
		return "./" + plain.Encoded() + "//layer.tar"
	}, func(d digest.Digest) string { return "./" + json64(d) }, nil, entryName},
	{"nix dockerTools", Plain, plainFolder, json64, nil, dotted},
	{"skopeo", Plain, plainFile, json64, nil, nil},
	{"podman", Plain, plainFile, json64, symlink, nil},
	{"crane, ko, kaniko", Gzip, packedName, digest.Digest.String, nil, nil},
	{"crane, zstd", Zstd, packedName, digest.Digest.String, nil, nil},
	{"pzstd", skippable, packedName, digest.Digest.String, nil, nil},
	{"jib", Gzip, packedName, func(digest.Digest) string { return "config.json" }, nil, nil},
	{"bazel", Gzip, func(packed, _ digest.Digest) string { return "blobs/sha256/" + packed.Encoded() + ".tar.gz" },
		blobName, nil, nil},
	{"by the plain layer's digest", Gzip, func(_, plain digest.Digest) string { return blobName(plain) }, json64,
		nil, nil},
	{"names without a meaning", Zstd, func(packed, _ digest.Digest) string { return "l-" + packed.Encoded()[:3] },
		func(digest.Digest) string { return "c" }, nil, nil},
}

func plainFolder(_, plain digest.Digest) string { return plain.Encoded() + "/layer.tar" }

func plainFile(_, plain digest.Digest) string { return plain.Encoded() + ".tar" }

func dotted(name string) string { return "./" + name }

// skippable compresses as pzstd does: a frame without data comes first.
func skippable(data []byte) []byte {
	return append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, Zstd(data)...)
}

func symlink(a *Archive, file string) string {
	a.Link("again/layer.tar", "../"+file)
	return "again/layer.tar"
}

func linkToLink(a *Archive, file string) string {
	a.Link("third/layer.tar", "../second/layer.tar")
	a.Link("second/layer.tar", "../"+file)
	a.Link("unused/layer.tar", "../nothing/layer.tar")
	return "third/layer.tar"
}

func hardLink(a *Archive, file string) string {
	check(a.tw.WriteHeader(&tar.Header{Name: "again/layer.tar", Typeflag: tar.TypeLink, Linkname: file}))
	return "again/layer.tar"
}

func packedName(packed, _ digest.Digest) string { return packed.Encoded() + ".tar.gz" }

// Archive returns what the maker writes of an image with two layers, the second of them twice.
func (m Maker) Archive(name string, p v1.Platform, harm func(layer []byte) []byte) []byte {
	a := NewArchive()
	a.rename = m.InTar
	first, second := LayerOf("first of "+name), LayerOf("second of "+name)
	config := configFor(p, first, second, second)
	var files []string
	for i, plain := range [][]byte{first, second, second} {
		packed := m.Pack(plain)
		file := m.File(digest.FromBytes(packed), digest.FromBytes(plain))
		if harm != nil && i == 1 {
			packed = harm(packed)
		}
		switch {
		case i < 2:
			a.Add(file, packed)
		case m.Link != nil:
			file = m.Link(a, file)
		}
		files = append(files, file)
	}
	configFile := m.Config(digest.FromBytes(config))
	a.Add(configFile, config)
	a.Add(dockerManifest, encode([]map[string]any{{"Config": configFile, "RepoTags": []string{name}, "Layers": files}}))
	return a.Bytes()
}

// LargeLayer is a layer with a file of zeros of the size, which compresses well.
func LargeLayer(size int64) []byte {
	a := NewArchive()
	a.AddZeros("large", size)
	return a.Bytes()
}

// SparseLayer is a small layer whose one file has the size, and nothing but a hole.
func SparseLayer(dir string, size int64) ([]byte, error) {
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	return exec.Command("tar", "-c", "--sparse", "-C", dir, "large").Output()
}
