package ociarchive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	goruntime "runtime"
	"sort"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// refName is the annotation by which containerd finds the full name of an image in an archive's
// index.
const refName = "io.containerd.image.name"

// File is one file, directory or link of an image's only layer.
type File struct {
	// Name is the path inside the image, without a leading slash. Parent directories are added by
	// Write.
	Name string
	// Mode is the permission bits; zero means 0644.
	Mode int64
	// Content is the file's bytes. Ignored when Link or Source is set.
	Content []byte
	// Source is a file on disk whose bytes are used instead of Content.
	Source string
	// Link makes the entry a symbolic link to this target.
	Link string
}

// Image describes the image to write.
type Image struct {
	// Name is the full reference with its tag, for instance "docker.io/library/demo:1".
	Name string
	// Architecture defaults to the architecture this program runs on.
	Architecture string
	Entrypoint   []string
	Cmd          []string
	Env          []string
	User         string
	Labels       map[string]string
	Files        []File
}

// Write writes the image as an uncompressed OCI archive. The same input gives the same bytes.
func Write(w io.Writer, img Image) error {
	layer, err := layerTar(img.Files)
	if err != nil {
		return err
	}
	arch := img.Architecture
	if arch == "" {
		arch = goruntime.GOARCH
	}
	epoch := time.Unix(0, 0).UTC()
	layerDigest := digest.FromBytes(layer)
	config, err := json.Marshal(v1.Image{
		Created:  &epoch,
		Platform: v1.Platform{Architecture: arch, OS: "linux"},
		Config: v1.ImageConfig{
			Entrypoint: img.Entrypoint,
			Cmd:        img.Cmd,
			Env:        img.Env,
			User:       img.User,
			Labels:     img.Labels,
		},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDigest}},
	})
	if err != nil {
		return fmt.Errorf("encode image config: %w", err)
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    descriptor(v1.MediaTypeImageConfig, config),
		Layers:    []v1.Descriptor{descriptor(v1.MediaTypeImageLayer, layer)},
	})
	if err != nil {
		return fmt.Errorf("encode image manifest: %w", err)
	}
	entry := descriptor(v1.MediaTypeImageManifest, manifest)
	entry.Platform = &v1.Platform{Architecture: arch, OS: "linux"}
	entry.Annotations = map[string]string{refName: img.Name}
	index, err := json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{entry},
	})
	if err != nil {
		return fmt.Errorf("encode image index: %w", err)
	}

	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		data []byte
	}{
		{v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`)},
		{v1.ImageIndexFile, index},
		{blobPath(manifest), manifest},
		{blobPath(config), config},
		{blobPath(layer), layer},
	} {
		if err := addFile(tw, f.name, 0o644, f.data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("finish archive: %w", err)
	}
	return nil
}

// WriteFile writes the image to a file, replacing it.
func WriteFile(name string, img Image) error {
	var buf bytes.Buffer
	if err := Write(&buf, img); err != nil {
		return err
	}
	if err := os.WriteFile(name, buf.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}

func layerTar(files []File) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	dirs := map[string]bool{}
	for _, f := range files {
		for d := path.Dir(f.Name); d != "." && d != "/"; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	ordered := make([]string, 0, len(dirs))
	for d := range dirs {
		ordered = append(ordered, d)
	}
	sort.Strings(ordered)
	for _, d := range ordered {
		if err := tw.WriteHeader(&tar.Header{
			Name:     d + "/",
			Typeflag: tar.TypeDir,
			Mode:     0o755,
			ModTime:  time.Unix(0, 0),
		}); err != nil {
			return nil, fmt.Errorf("add directory %s: %w", d, err)
		}
	}
	for _, f := range files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		if f.Link != "" {
			if err := tw.WriteHeader(&tar.Header{
				Name:     f.Name,
				Typeflag: tar.TypeSymlink,
				Linkname: f.Link,
				Mode:     0o777,
				ModTime:  time.Unix(0, 0),
			}); err != nil {
				return nil, fmt.Errorf("add link %s: %w", f.Name, err)
			}
			continue
		}
		content := f.Content
		if f.Source != "" {
			var err error
			if content, err = os.ReadFile(f.Source); err != nil {
				return nil, fmt.Errorf("read file for image: %w", err)
			}
		}
		if err := addFile(tw, f.Name, mode, content); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("finish layer: %w", err)
	}
	return buf.Bytes(), nil
}

func addFile(tw *tar.Writer, name string, mode int64, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{
		Name:     name,
		Typeflag: tar.TypeReg,
		Mode:     mode,
		Size:     int64(len(data)),
		ModTime:  time.Unix(0, 0),
	}); err != nil {
		return fmt.Errorf("add file %s: %w", name, err)
	}
	if _, err := tw.Write(data); err != nil {
		return fmt.Errorf("add file %s: %w", name, err)
	}
	return nil
}

func descriptor(mediaType string, data []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func blobPath(data []byte) string {
	sum := sha256.Sum256(data)
	return "blobs/sha256/" + hex.EncodeToString(sum[:])
}
