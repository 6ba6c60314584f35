package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/layout"
)

// ErrDamaged is wrapped when the content of containerd's records shows that they cannot be used.
// Records that could not be read are not damaged: the disk may be busy, full or read-only.
var ErrDamaged = errors.New("records are damaged")

// Damaged reports whether err says that containerd's records are damaged, which only an error of
// this package or of bbolt can. Pods are ended and records moved for such errors and no others.
func Damaged(err error) bool {
	for _, known := range []error{ErrDamaged, berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// WithRemedy adds to an error about the host what to do about it. It returns others as they are.
func WithRemedy(err error) error {
	if r := remedy(err); r != "" {
		return fmt.Errorf("%w: %s", err, r)
	}
	return err
}

func remedy(err error) string {
	if limit := hostcheck.LimitRemedy(err); limit != "" {
		return limit
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "free space on the disk of the data folder"
	case errors.Is(err, unix.ENOMEM):
		return "free memory on this machine"
	case errors.Is(err, unix.EROFS):
		return "make the file system of the data folder writable"
	case errors.Is(err, unix.EIO):
		return "check the disk of the data folder"
	}
	return ""
}

// findDamage checks the database files of containerd, which only make sense together. A file that
// does not exist yet is not damaged.
func findDamage(p layout.Paths) error {
	meta := filepath.Join(p.Root, layout.MetadataDB)
	_, err := os.Stat(meta)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find containerd's database: %w", err)
	}
	haveMeta := err == nil
	if haveMeta {
		if err := checkBolt(meta); err != nil {
			return err
		}
	}
	dbs, err := filepath.Glob(filepath.Join(p.Root, layout.Snapshotter+"*", snapshotDB))
	if err != nil {
		return fmt.Errorf("list snapshot databases: %w", err)
	}
	for _, db := range dbs {
		if !haveMeta {
			return fmt.Errorf("%w: %s exists without %s", ErrDamaged, db, meta)
		}
		if err := checkBolt(db); err != nil {
			return err
		}
		if err := checkSnapshotFolders(db); err != nil {
			return err
		}
	}
	if haveMeta {
		return nil
	}
	// Also how a start finds the node that set records aside and was killed before it had ended the
	// pods.
	running, err := taskFolders(p)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		return fmt.Errorf("%w: %d containers run without %s", ErrDamaged, len(running), meta)
	}
	return nil
}

// taskFolders lists the folders in which shims keep their running containers.
func taskFolders(p layout.Paths) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(p.State, taskFolder, layout.Namespace, "*"))
	if err != nil {
		return nil, fmt.Errorf("list running containers: %w", err)
	}
	return found, nil
}
