package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// registry serves the images of archives, for the few tests that always pull: as a site without
// internet would, the nodes have it as their mirror.
type registry struct {
	manifests map[string]string   // reference without the registry's host, to digest
	kinds     map[string]string   // manifests' digests, to media type
	blobs     map[string]fragment // digest, to where it is
}

// fragment is a piece of a file.
type fragment struct {
	file         string
	offset, size int64
}

func newRegistry(archives []string) (*registry, error) {
	r := &registry{manifests: map[string]string{}, kinds: map[string]string{}, blobs: map[string]fragment{}}
	for _, a := range archives {
		if err := r.add(a); err != nil {
			return nil, fmt.Errorf("read image archive %s: %w", a, err)
		}
	}
	return r, nil
}

func (r *registry) add(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var index struct {
		Manifests []struct {
			MediaType, Digest string
			Annotations       map[string]string
		}
	}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		// The reader takes no more than the header from the file, so its place is that of the data.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			r.blobs["sha256:"+hex] = fragment{file: file, offset: at, size: h.Size}
		}
		if h.Name == "index.json" {
			if err := json.NewDecoder(t).Decode(&index); err != nil {
				return err
			}
		}
	}
	for _, m := range index.Manifests {
		name := m.Annotations["io.containerd.image.name"]
		_, reference, ok := strings.Cut(name, "/")
		if !ok {
			return fmt.Errorf("image %q has no registry in its name", name)
		}
		r.manifests[reference], r.kinds[m.Digest] = m.Digest, m.MediaType
	}
	return nil
}

// ServeHTTP answers the reading part of the OCI distribution protocol.
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	digest := ""
	if name, ref, ok := strings.Cut(path, "/manifests/"); ok {
		if digest = ref; !strings.HasPrefix(ref, "sha256:") {
			digest = r.manifests[name+":"+ref]
		}
	} else if _, ref, ok := strings.Cut(path, "/blobs/"); ok {
		digest = ref
	} else if path == "" {
		return
	}
	part, ok := r.blobs[digest]
	if !ok {
		http.NotFound(w, q)
		return
	}
	f, err := os.Open(part.file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	if kind := r.kinds[digest]; kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	http.ServeContent(w, q, "", time.Time{}, io.NewSectionReader(f, part.offset, part.size))
}

// serve answers on l until ctx ends.
func (r *registry) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve images: %w", err)
	}
	return nil
}

// writeMirrors writes a registries file that makes address the mirror of the registry whose images
// the archives hold.
func writeMirrors(file, address string) error {
	text := fmt.Sprintf("mirrors:\n  registry.k8s.io:\n    endpoint: [\"http://%s\"]\n", address)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write registries file: %w", err)
	}
	return nil
}

// findArchives lists the archives in a folder; there must be some.
func findArchives(dir string) ([]string, error) {
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil || len(archives) == 0 {
		return nil, fmt.Errorf("find the suite's images in %s: none there; make them with `make conformance-images`",
			dir)
	}
	return archives, nil
}
