package openapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// crd is an established custom resource with one served and one unserved version.
func crd(kind string, generation int64) *apiextensionsv1.CustomResourceDefinition {
	plural := strings.ToLower(kind) + "s"
	schema := &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
		Type: "object",
		Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {
			Type: "object",
			Properties: map[string]apiextensionsv1.JSONSchemaProps{"size": {Type: "integer",
				Description: "how large the " + kind + " is"}},
		}},
	}}
	return &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: plural + ".example.com", UID: "1", Generation: generation},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.com",
			Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{
				Plural:   plural,
				Singular: strings.ToLower(kind),
				Kind:     kind,
				ListKind: kind + "List",
			},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{
				{
					Name:    "v1",
					Served:  true,
					Storage: true,
					Schema:  schema,
				},
				{Name: "v1alpha1", Served: false, Schema: schema},
			},
		},
		Status: apiextensionsv1.CustomResourceDefinitionStatus{
			AcceptedNames: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Kind: kind},
			Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established,
				Status: apiextensionsv1.ConditionTrue}},
		},
	}
}

// elsewhere is a next handler that knows one document.
var elsewhere = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case v3Path:
		_ = json.NewEncoder(w).Encode(
			handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{
				"apis/metrics.k8s.io/v1": {ServerRelativeURL: v3Path + "/apis/metrics.k8s.io/v1?hash=M"},
			}})
	case v3Path + "/apis/metrics.k8s.io/v1":
		_, _ = io.WriteString(w, "metrics")
	default:
		http.NotFound(w, r)
	}
})

func ask(t *testing.T, path, accept string,
	crds ...*apiextensionsv1.CustomResourceDefinition) *httptest.ResponseRecorder {
	t.Helper()
	h := NewHandler(elsewhere,
		func(context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error) { return crds, nil })
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func root(t *testing.T, crds ...*apiextensionsv1.CustomResourceDefinition) map[string]string {
	t.Helper()
	var list handler3.OpenAPIV3Discovery
	if err := json.Unmarshal(ask(t, v3Path, "application/json", crds...).Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	urls := map[string]string{}
	for path, document := range list.Paths {
		urls[path] = document.ServerRelativeURL
	}
	return urls
}

func TestHandler_Root_ListsAllDocuments(t *testing.T) {
	urls := root(t, crd("Widget", 1))
	for _, path := range []string{"api/v1", "apis/apps/v1", "apis/apiextensions.k8s.io/v1", "apis/example.com/v1",
		"apis/metrics.k8s.io/v1", "version"} {
		if !strings.HasPrefix(urls[path], v3Path+"/"+path+"?hash=") {
			t.Errorf("%s is listed as %q", path, urls[path])
		}
	}
	if _, listed := urls["apis/example.com/v1alpha1"]; listed {
		t.Error("a version that is not served is listed")
	}
	changed := root(t, crd("Widget", 2))
	if changed["apis/example.com/v1"] == urls["apis/example.com/v1"] {
		t.Error("the document of a changed definition has its old name")
	}
	if changed["apis/apps/v1"] != urls["apis/apps/v1"] {
		t.Error("a built-in document changed its name with a custom one")
	}
}

func TestHandler_V3_EveryListedDocumentIsThere(t *testing.T) {
	for path, target := range root(t, crd("Widget", 1)) {
		w := ask(t, target, "application/json", crd("Widget", 1))
		if w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Errorf("%s: status %d, %d bytes", path, w.Code, w.Body.Len())
		}
		if path != "apis/metrics.k8s.io/v1" && !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s under its hash may not be kept: %v", path, w.Header())
		}
	}
}

func TestHandler_V3_Answers(t *testing.T) {
	w := ask(t, v3Path+"/apis/example.com/v1", "application/json", crd("Widget", 1))
	if !strings.Contains(w.Body.String(), "how large the Widget is") {
		t.Errorf("the custom document does not describe its fields: %.200s", w.Body)
	}
	w = ask(t, v3Path+"/apis/example.com/v1?hash=OLD", "application/json", crd("Widget", 1))
	if w.Code != http.StatusMovedPermanently || !strings.Contains(w.Header().Get("Location"), "hash=") {
		t.Errorf("an old hash: status %d, location %q", w.Code, w.Header().Get("Location"))
	}
	if w = ask(t, v3Path+"/apis/example.com/v2", "application/json", crd("Widget", 1)); w.Code != http.StatusNotFound {
		t.Errorf("an unknown version: status %d", w.Code)
	}
	w = ask(t, v3Path+"/apis/apps/v1", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf")
	var document openapi_v3.Document
	if err := proto.Unmarshal(w.Body.Bytes(), &document); err != nil || w.Header().Get("Content-Type") != protobufV3 {
		t.Errorf("as protobuf: %v, %v", err, w.Header())
	}
	first := ask(t, v3Path+"/apis/apps/v1", "application/json")
	h := NewHandler(elsewhere,
		func(context.Context) ([]*apiextensionsv1.CustomResourceDefinition, error) { return nil, nil })
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, v3Path+"/apis/apps/v1", nil)
	r.Header.Set("If-None-Match", first.Header().Get("Etag"))
	again := httptest.NewRecorder()
	h.ServeHTTP(again, r)
	if again.Code != http.StatusNotModified || again.Body.Len() != 0 {
		t.Errorf("asked with the tag of the answer: status %d, %d bytes", again.Code, again.Body.Len())
	}
}

func TestHandler_V2_JSONHoldsBothParts(t *testing.T) {
	for _, row := range []struct {
		name string
		crds []*apiextensionsv1.CustomResourceDefinition
		want bool
	}{
		{"without custom resources", nil, false},
		{"with two of one group", []*apiextensionsv1.CustomResourceDefinition{crd("Widget", 1), crd("Gadget", 1)},
			true},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := ask(t, v2Path, "application/json", row.crds...)
			var document spec.Swagger
			if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
				t.Fatalf("%v: %.300s", err, w.Body)
			}
			if document.Swagger != "2.0" || document.Info == nil || document.Info.Title != "Kubernetes" {
				t.Errorf("head is %q, %v", document.Swagger, document.Info)
			}
			for _, name := range []string{"io.k8s.api.core.v1.Pod", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"} {
				if _, ok := document.Definitions[name]; !ok {
					t.Errorf("%s is missing", name)
				}
			}
			for _, name := range []string{"com.example.v1.Widget", "com.example.v1.Gadget"} {
				if _, ok := document.Definitions[name]; ok != row.want {
					t.Errorf("%s is there: %v", name, ok)
				}
			}
			const widgets = "/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"
			if _, ok := document.Paths.Paths[widgets]; ok != row.want {
				t.Errorf("the path of widgets is there: %v", ok)
			}
			if strings.Count(w.Body.String(), `"io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta":`) != 1 {
				t.Error("a definition both parts have is there twice")
			}
		})
	}
}

func TestHandler_V2_ProtobufHoldsBothParts(t *testing.T) {
	const accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	names := func(crds ...*apiextensionsv1.CustomResourceDefinition) (definitions, paths []string) {
		var document openapi_v2.Document
		if err := proto.Unmarshal(ask(t, v2Path, accept, crds...).Body.Bytes(), &document); err != nil {
			t.Fatal(err)
		}
		for _, d := range document.Definitions.AdditionalProperties {
			definitions = append(definitions, d.Name)
		}
		for _, p := range document.Paths.Path {
			paths = append(paths, p.Name)
		}
		return definitions, paths
	}
	builtInDefinitions, builtInPaths := names()
	definitions, paths := names(crd("Widget", 1))
	if !slices.Contains(definitions, "com.example.v1.Widget") ||
		!slices.Contains(paths, "/apis/example.com/v1/widgets") {
		t.Error("the custom resource is missing")
	}
	if len(definitions) != len(builtInDefinitions)+2 || len(paths) <= len(builtInPaths) {
		t.Errorf("%d definitions and %d paths, without the custom resource %d and %d", len(definitions), len(paths),
			len(builtInDefinitions), len(builtInPaths))
	}
}

func TestCheck(t *testing.T) {
	if err := Check(); err != nil {
		t.Error(err)
	}
	if err := (archive{embedded[:len(embedded)/2]}).check(); err == nil {
		t.Error("half an archive is taken for whole")
	}
}

func TestArchive_IsOfThisKubernetes(t *testing.T) {
	index, err := archive{embedded}.index()
	if err != nil {
		t.Fatal(err)
	}
	if want := "v1.37.2"; index.KubernetesVersion != want {
		t.Errorf("the documents are of %s, mote is of %s: run scripts/openapi", index.KubernetesVersion, want)
	}
	if len(index.V3Hashes) < 40 || len(index.V2Definitions) < 500 {
		t.Errorf("only %d documents and %d definitions", len(index.V3Hashes), len(index.V2Definitions))
	}
}
