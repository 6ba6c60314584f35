package runtime_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap/zaptest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/runtime"
	"github.com/mote-dev/mote/runtime/image/ociarchive"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/recovery"
	"github.com/mote-dev/mote/runtime/runtimetest"
)

// registry serves the image of an archive to clients with the password.
type registry struct {
	blobs    map[digest.Digest][]byte
	manifest digest.Digest
	// requests receives the path of each request that had the password.
	requests chan string
}

func newRegistry(t *testing.T, img ociarchive.Image) *registry {
	t.Helper()
	r := &registry{blobs: map[digest.Digest][]byte{}, requests: make(chan string, 100)}
	var archive bytes.Buffer
	if err := ociarchive.Write(&archive, img); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&archive)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == v1.ImageIndexFile {
			var index v1.Index
			if err := json.Unmarshal(data, &index); err != nil {
				t.Fatal(err)
			}
			r.manifest = index.Manifests[0].Digest
		}
		r.blobs[digest.FromBytes(data)] = data
	}
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, ok := req.BasicAuth(); !ok || user != "reader" || password != "secret" {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	r.requests <- req.URL.Path
	parts := strings.Split(req.URL.Path, "/")
	last := digest.Digest(parts[len(parts)-1])
	if strings.Contains(req.URL.Path, "/manifests/") {
		if last == "1" {
			last = r.manifest
		}
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", last.String())
	}
	data, ok := r.blobs[last]
	if !ok {
		http.NotFound(w, req)
		return
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// TestPull_ThroughMirror pulls an image of a registry that does not exist from the mirror the
// registries file names, with the credentials and the new name it gives.
func TestPull_ThroughMirror(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	reg := newRegistry(t, ociarchive.Image{
		Name:       "none.invalid/app:1",
		Entrypoint: []string{"/x"},
		Files:      []ociarchive.File{{Name: "x", Mode: 0o755, Content: []byte(strings.Repeat("pulled\n", 500))}},
	})
	server := httptest.NewServer(reg)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	file := fmt.Sprintf("mirrors:\n  none.invalid:\n    endpoint: [%q]\n    rewrite: {\"^\": team/}\n"+
		"configs:\n  %q:\n    auth: {username: reader, password: secret}\n", server.URL, host)
	if err := os.WriteFile(n.Config.RegistriesFile, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Config.Logger = zaptest.NewLogger(t)
	r, err := runtime.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(runCtx) }()
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("runtime ended: %v", err)
	}
	ref, err := r.ImageService().PullImage(ctx, &runtimeapi.ImageSpec{Image: "none.invalid/app:1"}, nil, nil)
	if err != nil {
		t.Error(err)
	}
	if len(reg.requests) == 0 {
		t.Error("the mirror was not asked")
	} else if asked := <-reg.requests; !strings.HasPrefix(asked, "/v2/team/app/") {
		t.Errorf("the mirror was asked for %s, not by the new name", asked)
	}
	status, err := r.ImageService().ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil || status.Image == nil {
		t.Fatalf("pulled image is not there: %v, %v", status, err)
	}
	if status.Image.Pinned {
		t.Error("a pulled image is pinned")
	}
	if _, err := r.ImageService().PullImage(ctx, &runtimeapi.ImageSpec{Image: "none.invalid/app:2"}, nil,
		nil); err == nil {
		t.Error("pulling what the mirror does not have gave no error")
	}
	// containerd's records are lost; the registry is out of reach.
	list := filepath.Join(n.Config.DataDir, "runtime/images.json")
	runtimetest.WaitFor(ctx, t, func() bool {
		data, err := os.ReadFile(list)
		return err == nil && strings.Contains(string(data), `"none.invalid/app:1"`)
	})
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	server.Close()
	runtimetest.Halve(t, filepath.Join(n.Paths().Root, layout.MetadataDB))
	r, err = runtime.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop = context.WithCancel(ctx)
	go func() { done <- r.Run(runCtx) }()
	select {
	case <-r.Ready():
	case err := <-done:
		t.Fatalf("runtime ended: %v", err)
	}
	for _, name := range []string{"none.invalid/app:1", ref} {
		status, err = r.ImageService().ImageStatus(ctx, &runtimeapi.ImageSpec{Image: name}, false)
		if err != nil || status.Image == nil {
			t.Fatalf("pulled image is lost with containerd's records: %v, %v", status, err)
		}
		if status.Image.Pinned {
			t.Error("a pulled image is pinned after it was rebuilt")
		}
	}
	if err := r.ImageService().RemoveImage(ctx, &runtimeapi.ImageSpec{Image: ref}); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRun_RefusesBadRegistries names the file and the mistake.
func TestRun_RefusesBadRegistries(t *testing.T) {
	n := runtimetest.NewNode(t)
	if err := os.WriteFile(n.Config.RegistriesFile, []byte("mirors: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := runtime.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(runtimetest.Timeout(t, 20*time.Second)); err == nil || !strings.Contains(err.Error(), "mirors") {
		t.Errorf("error is %v", err)
	}
}

// TestRun_RefusesSecond must not let two runtimes share a data folder.
func TestRun_RefusesSecond(t *testing.T) {
	n := runtimetest.NewNode(t)
	ctx := runtimetest.Timeout(t, 180*time.Second)
	first, err := runtime.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	runCtx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- first.Run(runCtx) }()
	<-first.Ready()
	second, err := runtime.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(ctx); !errors.Is(err, recovery.ErrInUse) {
		t.Errorf("second runtime gave %v", err)
	}
	if _, err := recovery.Cleanup(ctx, n.Config.DataDir); !errors.Is(err, recovery.ErrInUse) {
		t.Errorf("clean-up under a running runtime gave %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
