package openapi

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// The archive is a zip file made by scripts/openapi from a running API server:
//
//	index.json           an Index
//	v3/<path>.json       one OpenAPI 3 document a group version, e.g. v3/apis/apps/v1.json
//	v2/head.json         the other members of the OpenAPI 2 document, without braces
//	v2/definitions.json  the members of "definitions", without braces
//	v2/paths.json        the members of "paths", without braces
//	v2/document.pb       the whole OpenAPI 2 document as gnostic's protobuf
//
//go:embed data/openapi.zip
var embedded []byte

// Names of the archive's files.
const (
	IndexFile         = "index.json"
	V2HeadFile        = "v2/head.json"
	V2DefinitionsFile = "v2/definitions.json"
	V2PathsFile       = "v2/paths.json"
	V2ProtobufFile    = "v2/document.pb"
)

// V3File is the file of a group version's document.
func V3File(path string) string { return "v3/" + path + ".json" }

// Index lists the contents of an archive.
type Index struct {
	// KubernetesVersion is that of the server the documents are from.
	KubernetesVersion string
	// V2Hash is the hash of the OpenAPI 2 document, V3Hashes those of the OpenAPI 3 documents by
	// path ("apis/apps/v1").
	V2Hash   string
	V3Hashes map[string]string
	// V2Definitions are the names of the OpenAPI 2 document's definitions.
	V2Definitions []string
}

// ErrNoDocument is returned for a path that has no document.
var ErrNoDocument = errors.New("no such OpenAPI document")

// archive reads the built-in documents. Nothing is kept in memory between calls.
type archive struct{ data []byte }

func (a archive) read(name string) ([]byte, error) {
	z, err := zip.NewReader(bytes.NewReader(a.data), int64(len(a.data)))
	if err != nil {
		return nil, fmt.Errorf("open OpenAPI archive: %w", err)
	}
	f, err := z.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNoDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s of OpenAPI archive: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open %s of OpenAPI archive: %w", name, err)
	}
	buffer := bytes.NewBuffer(make([]byte, 0, info.Size()+bytes.MinRead))
	if _, err := io.Copy(buffer, f); err != nil {
		return nil, fmt.Errorf("read %s of OpenAPI archive: %w", name, err)
	}
	return buffer.Bytes(), nil
}

func (a archive) index() (Index, error) {
	data, err := a.read(IndexFile)
	if err != nil {
		return Index{}, err
	}
	var i Index
	if err := json.Unmarshal(data, &i); err != nil {
		return Index{}, fmt.Errorf("read index of OpenAPI archive: %w", err)
	}
	return i, nil
}

// Check returns an error if the built-in documents cannot be read.
func Check() error { return archive{embedded}.check() }

func (a archive) check() error {
	index, err := a.index()
	if err != nil {
		return err
	}
	if index.V2Hash == "" || len(index.V3Hashes) == 0 {
		return fmt.Errorf("index of OpenAPI archive lists no documents: %w", ErrNoDocument)
	}
	return nil
}
