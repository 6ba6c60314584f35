package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/server/openapi"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: openapi KUBECONFIG FILE")
		os.Exit(1)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(kubeconfig, file string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	files, err := documents(client.RESTClient())
	if err != nil {
		return err
	}
	data, err := pack(files)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// documents fetches everything the archive holds.
func documents(c rest.Interface) (map[string][]byte, error) {
	files := map[string][]byte{}
	index := openapi.Index{V3Hashes: map[string]string{}}
	version, err := get(c, "/version", "application/json")
	if err != nil {
		return nil, err
	}
	var v struct{ GitVersion string }
	if err := json.Unmarshal(version, &v); err != nil {
		return nil, err
	}
	index.KubernetesVersion = v.GitVersion

	root, err := get(c, "/openapi/v3", "application/json")
	if err != nil {
		return nil, err
	}
	var list struct{ Paths map[string]any }
	if err := json.Unmarshal(root, &list); err != nil {
		return nil, err
	}
	for path := range list.Paths {
		document, err := get(c, "/openapi/v3/"+path, "application/json")
		if err != nil {
			return nil, err
		}
		files[openapi.V3File(path)] = document
		index.V3Hashes[path] = sum(document)
	}

	v2, err := get(c, "/openapi/v2", "application/json")
	if err != nil {
		return nil, err
	}
	index.V2Hash = sum(v2)
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(v2, &members); err != nil {
		return nil, err
	}
	definitions := map[string]json.RawMessage{}
	if err := json.Unmarshal(members["definitions"], &definitions); err != nil {
		return nil, err
	}
	index.V2Definitions = slices.Sorted(maps.Keys(definitions))
	files[openapi.V2DefinitionsFile] = inside(members["definitions"])
	files[openapi.V2PathsFile] = inside(members["paths"])
	delete(members, "definitions")
	delete(members, "paths")
	head, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	files[openapi.V2HeadFile] = inside(head)
	if files[openapi.V2ProtobufFile], err = get(c, "/openapi/v2",
		"application/com.github.proto-openapi.spec.v2@v1.0+protobuf"); err != nil {
		return nil, err
	}
	files[openapi.IndexFile], err = json.Marshal(index)
	return files, err
}

func get(c rest.Interface, path, accept string) ([]byte, error) {
	data, err := c.Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(context.Background())
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	return data, nil
}

// inside is an object without its braces.
func inside(object []byte) []byte {
	object = bytes.TrimSpace(object)
	return object[1 : len(object)-1]
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return strings.ToUpper(hex.EncodeToString(s[:]))
}

// pack writes the files in the order of their names and without times, so that the same documents
// give the same archive.
func pack(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	z.RegisterCompressor(zip.Deflate,
		func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := z.Create(name)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
