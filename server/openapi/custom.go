package openapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	apiextensionshelpers "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// served calls f for every version of every established custom resource that is served, in a fixed
// order.
func served(crds []*apiextensionsv1.CustomResourceDefinition,
	f func(crd *apiextensionsv1.CustomResourceDefinition, version string) error) error {
	crds = slices.SortedFunc(slices.Values(crds),
		func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	for _, crd := range crds {
		if !apiextensionshelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			if err := f(crd, v.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func groupVersionPath(crd *apiextensionsv1.CustomResourceDefinition, version string) string {
	return "apis/" + crd.Spec.Group + "/" + version
}

// customHashes are the hashes of the OpenAPI 3 documents of custom resources, by path. They are
// made from what identifies the definitions, so that asking for them builds no document.
func customHashes(crds []*apiextensionsv1.CustomResourceDefinition) map[string]string {
	sums := make(map[string][]string)
	// The function returns no error, so neither does served.
	_ = served(crds, func(crd *apiextensionsv1.CustomResourceDefinition, version string) error {
		path := groupVersionPath(crd, version)
		sums[path] = append(sums[path], identity(crd))
		return nil
	})
	hashes := make(map[string]string, len(sums))
	for path, parts := range sums {
		hashes[path] = hash([]byte(strings.Join(parts, "\n")))
	}
	return hashes
}

// identity changes whenever the documents of a custom resource do.
func identity(crd *apiextensionsv1.CustomResourceDefinition) string {
	return fmt.Sprintf("%s %s %d %s", crd.Name, crd.UID, crd.Generation, crd.Status.AcceptedNames.Plural)
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// customV3 builds the OpenAPI 3 document of a path from the custom resources of its group version.
func customV3(crds []*apiextensionsv1.CustomResourceDefinition, path string) ([]byte, error) {
	var specs []*spec3.OpenAPI
	err := served(crds, func(crd *apiextensionsv1.CustomResourceDefinition, version string) error {
		if groupVersionPath(crd, version) != path {
			return nil
		}
		s, err := builder.BuildOpenAPIV3(crd, version, builder.Options{IncludeSelectableFields: true})
		if err != nil {
			return fmt.Errorf("build OpenAPI document of %s: %w", crd.Name, err)
		}
		specs = append(specs, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, fmt.Errorf("%s: %w", path, ErrNoDocument)
	}
	merged, err := builder.MergeSpecsV3(specs...)
	if err != nil {
		return nil, fmt.Errorf("merge OpenAPI documents of %s: %w", path, err)
	}
	return json.Marshal(merged)
}

// customV2 are the definitions and paths that custom resources add to the OpenAPI 2 document,
// leaving out definitions in known.
func customV2(crds []*apiextensionsv1.CustomResourceDefinition, known []string) (*spec.Swagger, error) {
	all := &spec.Swagger{SwaggerProps: spec.SwaggerProps{Definitions: spec.Definitions{},
		Paths: &spec.Paths{Paths: map[string]spec.PathItem{}}}}
	skip := make(map[string]bool, len(known))
	for _, name := range known {
		skip[name] = true
	}
	err := served(crds, func(crd *apiextensionsv1.CustomResourceDefinition, version string) error {
		s, err := builder.BuildOpenAPIV2(crd, version, builder.Options{V2: true, IncludeSelectableFields: true})
		if err != nil {
			return fmt.Errorf("build OpenAPI document of %s: %w", crd.Name, err)
		}
		for name, definition := range handler.PruneDefaults(s.Definitions) {
			if !skip[name] {
				all.Definitions[name] = definition
			}
		}
		if s.Paths != nil {
			maps.Copy(all.Paths.Paths, s.Paths.Paths)
		}
		return nil
	})
	return all, err
}

// members is the JSON of a map's members without the braces around them.
func members[V any](m map[string]V) ([]byte, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return data[1 : len(data)-1], nil
}

// v2JSON builds the OpenAPI 2 document. The built-in part is spliced in as text: decoding it
// would take twenty times its size in memory.
func v2JSON(a archive, custom *spec.Swagger) ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	head, err := a.read(V2HeadFile)
	if err != nil {
		return nil, err
	}
	out.Write(head)
	for _, section := range []struct {
		name, file string
		added      func() ([]byte, error)
	}{
		{"definitions", V2DefinitionsFile, func() ([]byte, error) { return members(custom.Definitions) }},
		{"paths", V2PathsFile, func() ([]byte, error) { return members(custom.Paths.Paths) }},
	} {
		builtIn, err := a.read(section.file)
		if err != nil {
			return nil, err
		}
		added, err := section.added()
		if err != nil {
			return nil, fmt.Errorf("encode %s of custom resources: %w", section.name, err)
		}
		fmt.Fprintf(&out, ",%q:{", section.name)
		out.Write(builtIn)
		if len(added) > 0 {
			out.WriteByte(',')
			out.Write(added)
		}
		out.WriteByte('}')
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// v2Protobuf builds the document in gnostic's protobuf form. Encoded messages of one type
// can be joined by writing one after the other: embedded messages merge and lists append (protobuf
// encoding, "Last One Wins").
func v2Protobuf(a archive, custom *spec.Swagger) ([]byte, error) {
	builtIn, err := a.read(V2ProtobufFile)
	if err != nil {
		return nil, err
	}
	if len(custom.Definitions) == 0 && len(custom.Paths.Paths) == 0 {
		return builtIn, nil
	}
	whole := *custom
	whole.Swagger = "2.0"
	whole.Info = &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "unversioned"}}
	data, err := json.Marshal(&whole)
	if err != nil {
		return nil, fmt.Errorf("encode custom resources: %w", err)
	}
	document, err := openapi_v2.ParseDocument(data)
	if err != nil {
		return nil, fmt.Errorf("convert custom resources: %w", err)
	}
	added, err := proto.Marshal(&openapi_v2.Document{Definitions: document.Definitions, Paths: document.Paths})
	if err != nil {
		return nil, fmt.Errorf("encode custom resources: %w", err)
	}
	return append(builtIn, added...), nil
}
