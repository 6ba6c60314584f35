package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Resolve returns the real path of a data folder. Names of a node's bridge, cgroups and run-time
// folder come from it, and the kernel lists mounts by it, so that a folder is the same one through
// whichever link mote is told of it. What does not exist yet is kept as given.
//
// A link that leads nowhere is refused: a disk that is not mounted would have a second cluster made
// in its place. Any other fault is left to whoever opens the folder.
func Resolve(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return path, nil
	}
	path = filepath.Clean(path)
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return path, nil
	}
	if target, err := os.Readlink(path); err == nil {
		return "", fmt.Errorf("data-dir: %s is a link to %s, which is not there: mount its disk, or make that folder",
			path, target)
	}
	parent, err := Resolve(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}
