package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"net/url"
	"strings"
	"sync"
	"time"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/kube-openapi/pkg/handler3"
)

const (
	v2Path = "/openapi/v2"
	v3Path = "/openapi/v3"

	protobufV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protobufV3 = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// Handler serves /openapi/v2 and /openapi/v3, and passes all other requests on.
type Handler struct {
	archive archive
	// crds lists the cluster's custom resource definitions.
	crds func(context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error)
	// next answers all other requests, and has the documents of aggregated API servers.
	next http.Handler
	// building is held while a document is built, so that many clients at once need the memory of
	// one document.
	building sync.Mutex
}

// NewHandler returns a handler of the built-in documents in front of next.
func NewHandler(next http.Handler,
	crds func(context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error)) *Handler {
	return &Handler{archive: archive{embedded}, crds: crds, next: next}
}

// ServeHTTP implements http.Handler. The handlers in front of it authorize the request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	switch path := strings.TrimSuffix(r.URL.Path, "/"); {
	case path == v2Path:
		err = h.serveV2(w, r)
	case path == v3Path:
		err = h.serveRoot(w, r)
	case strings.HasPrefix(path, v3Path+"/"):
		err = h.serveV3(w, r, strings.TrimPrefix(path, v3Path+"/"))
	default:
		h.next.ServeHTTP(w, r)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (h *Handler) serveV2(w http.ResponseWriter, r *http.Request) error {
	crds, err := h.crds(r.Context())
	if err != nil {
		return err
	}
	index, err := h.archive.index()
	if err != nil {
		return err
	}
	etag := index.V2Hash
	if custom := customHashes(crds); len(custom) > 0 {
		data, err := json.Marshal(custom)
		if err != nil {
			return err
		}
		etag = hash(append(data, index.V2Hash...))
	}
	build, contentType := v2JSON, "application/json"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi.spec.v2") {
		build, contentType = v2Protobuf, protobufV2
	}
	return h.serve(w, r, etag, contentType, func() ([]byte, error) {
		custom, err := customV2(crds, index.V2Definitions)
		if err != nil {
			return nil, err
		}
		return build(h.archive, custom)
	})
}

// serveRoot lists the documents: those elsewhere, the built-in ones and those of custom resources.
func (h *Handler) serveRoot(w http.ResponseWriter, r *http.Request) error {
	crds, err := h.crds(r.Context())
	if err != nil {
		return err
	}
	index, err := h.archive.index()
	if err != nil {
		return err
	}
	root := h.elsewhere(r)
	hashes := maps.Clone(index.V3Hashes)
	maps.Copy(hashes, customHashes(crds))
	for path, sum := range hashes {
		root.Paths[path] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: v3Path + "/" + path + "?hash=" +
			sum}
	}
	data, err := json.Marshal(&root)
	if err != nil {
		return fmt.Errorf("encode list of OpenAPI documents: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
	return nil
}

// elsewhere asks the next handler for the documents it knows.
func (h *Handler) elsewhere(r *http.Request) handler3.OpenAPIV3Discovery {
	root := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	recorder := &recorder{header: http.Header{}, status: http.StatusOK}
	inner := r.Clone(r.Context())
	inner.Header = http.Header{"Accept": {"application/json"}}
	h.next.ServeHTTP(recorder, inner)
	if recorder.status == http.StatusOK {
		// What cannot be read is left out, as an API server that is down would be.
		_ = json.Unmarshal(recorder.body.Bytes(), &root)
	}
	if root.Paths == nil {
		root.Paths = map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}
	}
	return root
}

func (h *Handler) serveV3(w http.ResponseWriter, r *http.Request, path string) error {
	index, err := h.archive.index()
	if err != nil {
		return err
	}
	sum, builtIn := index.V3Hashes[path]
	var crds []*apiextensionsv1.CustomResourceDefinition
	if !builtIn {
		if crds, err = h.crds(r.Context()); err != nil {
			return err
		}
		var known bool
		if sum, known = customHashes(crds)[path]; !known {
			h.next.ServeHTTP(w, r)
			return nil
		}
	}
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != sum {
			// The list the client has is old: what it finds there is under this name now.
			target := url.URL{Path: r.URL.Path, RawQuery: url.Values{"hash": {sum}}.Encode()}
			http.Redirect(w, r, target.String(), http.StatusMovedPermanently)
			return nil
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	asProtobuf, contentType := false, "application/json"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi.spec.v3") {
		asProtobuf, contentType = true, protobufV3
	}
	return h.serve(w, r, sum, contentType, func() ([]byte, error) {
		var data []byte
		var err error
		if builtIn {
			data, err = h.archive.read(V3File(path))
		} else {
			data, err = customV3(crds, path)
		}
		if err != nil || !asProtobuf {
			return data, err
		}
		document, err := openapi_v3.ParseDocument(data)
		if err != nil {
			return nil, fmt.Errorf("convert OpenAPI document of %s: %w", path, err)
		}
		return proto.Marshal(document)
	})
}

// serve answers with what build returns unless the client has it already.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, sum, contentType string,
	build func() ([]byte, error)) error {
	etag := `"` + sum + `"`
	w.Header().Set("Etag", etag)
	w.Header().Set("Vary", "Accept-Encoding, Accept")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.building.Lock()
	data, err := build()
	h.building.Unlock()
	if errors.Is(err, ErrNoDocument) {
		http.NotFound(w, r)
		return nil
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return nil
}

// recorder keeps a response of the next handler.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
