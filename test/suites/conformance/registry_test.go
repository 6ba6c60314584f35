package main

import (
	"archive/tar"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestRegistry(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "a.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	index := `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:aa","annotations":{"io.containerd.image.name":"registry.example/team/app:1"}}]}`
	for _, e := range []struct{ name, data string }{{"blobs/sha256/bb", "layer"}, {"blobs/sha256/aa", `{"layers":[]}`},
		{"index.json", index}} {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := newRegistry([]string{archive})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	defer srv.Close()
	for _, row := range []struct {
		path string
		code int
		kind string
		body string
	}{
		{"/v2/", 200, "", ""},
		{"/v2/team/app/manifests/1", 200, "application/vnd.oci.image.manifest.v1+json", `{"layers":[]}`},
		{"/v2/team/app/manifests/sha256:aa?ns=registry.example", 200, "application/vnd.oci.image.manifest.v1+json",
			`{"layers":[]}`},
		{"/v2/team/app/blobs/sha256:bb", 200, "application/octet-stream", "layer"},
		{"/v2/team/app/manifests/2", 404, "", ""},
		{"/v2/team/app/blobs/sha256:cc", 404, "", ""},
	} {
		t.Run(row.path, func(t *testing.T) {
			resp, err := http.Get(srv.URL + row.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != row.code {
				t.Fatalf("status %d, want %d", resp.StatusCode, row.code)
			}
			if row.code == 200 &&
				(string(body) != row.body || row.kind != "" && resp.Header.Get("Content-Type") != row.kind) {
				t.Errorf("got %s %q", resp.Header.Get("Content-Type"), body)
			}
		})
	}
	if _, err := newRegistry([]string{filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("a missing archive was accepted")
	}
}
