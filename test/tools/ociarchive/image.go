package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// The media types and annotations of the OCI image specification 1.1, and containerd's name of a
// whole reference.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"

	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// image is what the command line asked for.
type image struct {
	names  []string // full references, the first one first
	layers []*layer
	config runConfig
}

// runConfig is the part of an image that says how to run it; the keys are the specification's.
type runConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type imageConfig struct {
	platform
	Created time.Time `json:"created"`
	Config  runConfig `json:"config"`
	RootFS  struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

// dockerImage is one entry of the manifest.json that `docker save` writes beside the OCI layout.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func describe(mediaType string, b blob) descriptor {
	return descriptor{MediaType: mediaType, Digest: b.digest(), Size: len(b.data)}
}

// write streams the image to out as an OCI layout with Docker's manifest.json beside it, so that
// either kind of importer reads it.
func (im *image) write(out io.Writer) error {
	if len(im.names) == 0 {
		return fmt.Errorf("write image: no name given")
	}
	var (
		arch   = platform{Architecture: runtime.GOARCH, OS: "linux"}
		cfg    = imageConfig{platform: arch, Created: time.Unix(0, 0).UTC(), Config: im.config}
		m      = manifest{SchemaVersion: 2, MediaType: typeManifest}
		docker = dockerImage{RepoTags: im.names}
		blobs  []blob
	)
	cfg.RootFS.Type = "layers"
	for _, l := range im.layers {
		plain, err := l.tarball()
		if err != nil {
			return err
		}
		packed, err := compress(plain)
		if err != nil {
			return err
		}
		b := newBlob(packed)
		blobs = append(blobs, b)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, newBlob(plain).digest())
		m.Layers = append(m.Layers, describe(typeLayer, b))
		docker.Layers = append(docker.Layers, blobPath(b))
	}
	c, err := jsonBlob(cfg)
	if err != nil {
		return err
	}
	m.Config = describe(typeConfig, c)
	docker.Config = blobPath(c)
	mb, err := jsonBlob(m)
	if err != nil {
		return err
	}
	blobs = append(blobs, c, mb)

	top := index{SchemaVersion: 2, MediaType: typeIndex}
	for _, name := range im.names {
		d := describe(typeManifest, mb)
		d.Platform = &arch
		d.Annotations = map[string]string{annotationName: name, annotationTag: tagOf(name)}
		top.Manifests = append(top.Manifests, d)
	}
	return writeLayout(out, top, docker, blobs)
}

func writeLayout(out io.Writer, top index, docker dockerImage, blobs []blob) error {
	w := tar.NewWriter(out)
	put := func(name string, data []byte) error {
		h := &tar.Header{
			Name:     name,
			Typeflag: tar.TypeReg,
			Mode:     0o644,
			Size:     int64(len(data)),
			ModTime:  time.Unix(0, 0),
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive entry %s: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("write archive entry %s: %w", name, err)
		}
		return nil
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, b := range blobs {
		if seen[b.hex] {
			continue
		}
		seen[b.hex] = true
		if err := put(blobPath(b), b.data); err != nil {
			return err
		}
	}
	for _, doc := range []struct {
		name  string
		value any
	}{{"index.json", top}, {"manifest.json", []dockerImage{docker}}} {
		b, err := jsonBlob(doc.value)
		if err != nil {
			return err
		}
		if err := put(doc.name, b.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("finish archive: %w", err)
	}
	return nil
}

func blobPath(b blob) string { return "blobs/sha256/" + b.hex }

func jsonBlob(v any) (blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return blob{}, fmt.Errorf("encode image document: %w", err)
	}
	return newBlob(data), nil
}

// tagOf is what follows the last colon of a reference's last part.
func tagOf(name string) string {
	last := name[strings.LastIndex(name, "/")+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok {
		return tag
	}
	return "latest"
}
