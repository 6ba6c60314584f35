package bundle

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// Names inside the embedded folder and inside the bundle. They are part of the agreement between
// internal/tools/pack, which writes, and this package.
const (
	ManifestName = "bundle.json"
	ArchiveName  = "bundle.tar.zst"
	PauseArchive = "pause.tar"
	// Helper is the multi-call executable behind `mote kubectl` and `mote ctr`.
	Helper = "mote-helper"
	Runc   = "runc"
	Shim   = "containerd-shim-runc-v2"
)

// WindowLog is the size, as a power of two, of the window the archive is compressed with. Unpacking
// holds that much in memory for a second; a window of 8 MiB would make the archive, and every
// executable, 3 MB larger.
const WindowLog = 27

// ErrNoBundle is returned by every function here when the executable was built without its bundle,
// that is without `make bundle` before `go build`.
var ErrNoBundle = errors.New("this mote was built without its bundle: run `make bundle`, then build again")

// ErrDamaged is wrapped by Verify when unpacked files are missing or differ from the bundle's.
var ErrDamaged = errors.New("unpacked tools are damaged")

// File is one file of the bundle.
type File struct {
	Name   string `json:"name"`
	Mode   uint32 `json:"mode"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Manifest describes the bundle. It is read at each start, so it is kept apart from the archive,
// which is read only when there is something to unpack.
type Manifest struct {
	// Hash is the SHA-256 of the uncompressed archive and names the folder the bundle is unpacked
	// to.
	Hash string `json:"hash"`
	// PauseImage is the full reference of the image in PauseArchive.
	PauseImage string `json:"pauseImage"`
	// WindowLog is the WindowLog the archive was compressed with.
	WindowLog int    `json:"windowLog"`
	Files     []File `json:"files"`
}

//go:embed data
var embedded embed.FS

// ReadManifest returns the manifest of the embedded bundle.
func ReadManifest() (Manifest, error) {
	data, err := embedded.ReadFile("data/" + ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, ErrNoBundle
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("read bundle manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Manifest{}, fmt.Errorf("parse bundle manifest: %w", err)
	}
	return m, nil
}

// openArchive returns a reader over the embedded bytes; nothing is copied to the heap.
func openArchive() (fs.File, error) {
	f, err := embedded.Open("data/" + ArchiveName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoBundle
	}
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	return f, nil
}
