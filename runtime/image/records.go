package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// loadedDir, in Paths.Marks, holds one record for each archive loaded.
const loadedDir = "loaded"

// errBadRecord is wrapped when a record of an archive is not one.
var errBadRecord = errors.New("damaged record of an image archive")

// archiveRecord describes an archive as it was loaded and the images in it, so that it is read
// again only if it changed or an image is not intact.
type archiveRecord struct {
	Path    string                   `json:"path"`
	Size    int64                    `json:"size"`
	ModTime time.Time                `json:"modTime"`
	SHA256  string                   `json:"sha256"`
	Images  map[string]v1.Descriptor `json:"images"`
	// Refusal is set instead of SHA256 and Images if the file was refused.
	Refusal *refusal `json:"refusal,omitempty"`
}

// refusal is why a file was refused.
type refusal struct {
	Reason string `json:"reason"`
	// NoArchive is set if it is no image archive at all.
	NoArchive bool `json:"noArchive"`
	// Rules is the [refusalRules] it was refused by.
	Rules int `json:"rules"`
}

// refusalRules is raised when mote learns to read what it refused before.
const refusalRules = 2

// again is the error of a file that was refused before: none for what is no archive, and none
// beside the start's own.
func (r refusal) again(quiet bool) error {
	if r.NoArchive || quiet {
		return nil
	}
	return errors.New(r.Reason)
}

// listArchives returns what may be archives in the folders, in the order of their names: everything
// but hidden files, which may be copies under way, and the folder of imported archives.
func listArchives(dirs ...string) ([]string, error) {
	var found []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list image archives: %w", err)
		}
		for _, e := range entries {
			file := filepath.Join(dir, e.Name())
			if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(dirs, file) {
				found = append(found, file)
			}
		}
	}
	return found, nil
}

func recordName(file string) string {
	sum := sha256.Sum256([]byte(file))
	return hex.EncodeToString(sum[:8]) + ".json"
}

func readRecord(name string) (archiveRecord, error) {
	var rec archiveRecord
	data, err := os.ReadFile(name)
	if err != nil {
		return rec, fmt.Errorf("read record of image archive: %w", err)
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("%w: %s: %w", errBadRecord, name, err)
	}
	return rec, nil
}

func writeRecord(name string, rec archiveRecord) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record of image archive: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("create folder for records: %w", err)
	}
	return atomicfile.Write(name, data, 0o600)
}

// forgetRecords removes the records of archives that are gone.
func (l Loader) forgetRecords(known map[string]bool) error {
	entries, err := os.ReadDir(filepath.Join(l.Paths.Marks, loadedDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list records of image archives: %w", err)
	}
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(l.Paths.Marks, loadedDir, e.Name())); err != nil {
			return fmt.Errorf("remove record of image archive: %w", err)
		}
	}
	return nil
}
