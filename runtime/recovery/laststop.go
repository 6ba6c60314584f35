package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/layout"
)

// ErrInUse is wrapped by Lock when another process runs a Runtime over the same data folder.
var ErrInUse = errors.New("the container runtime's data folder is in use by another mote")

const (
	lockFile  = "lock"
	cleanMark = "clean-stop"
	bootFile  = "boot-id"
	// bootIDSource changes with every start of the kernel.
	bootIDSource = "/proc/sys/kernel/random/boot_id"
)

// Lock locks the data folder for this process. The kernel unlocks it when the process ends.
func Lock(p layout.Paths) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(p.Marks, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: %s", ErrInUse, p.Root)
		} else {
			err = fmt.Errorf("lock data folder: %w", err)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// LastStop describes how the previous Run ended.
type LastStop struct {
	// Clean: it closed its files. If not, its last writes may be damaged.
	Clean bool
	// SameBoot: the machine has not booted since, so its containers may still run.
	SameBoot bool
}

// ReadLastStop reads the marks of the last Run. It removes the clean-stop mark, which this Run
// writes again only if it ends cleanly too.
func ReadLastStop(p layout.Paths) (LastStop, error) {
	var last LastStop
	mark := filepath.Join(p.Marks, cleanMark)
	switch err := os.Remove(mark); {
	case err == nil:
		last.Clean = true
	case !errors.Is(err, fs.ErrNotExist):
		return last, fmt.Errorf("remove mark of clean stop: %w", err)
	}
	now, err := os.ReadFile(bootIDSource)
	if err != nil {
		return last, fmt.Errorf("read boot id: %w", err)
	}
	file := filepath.Join(p.Marks, bootFile)
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return last, fmt.Errorf("read last boot id: %w", err)
	}
	last.SameBoot = strings.TrimSpace(string(before)) == strings.TrimSpace(string(now))
	if last.SameBoot {
		return last, atomicfile.SyncDir(p.Marks)
	}
	err = atomicfile.Write(file, now, 0o600)
	if hostcheck.IsFull(err) && len(before) >= len(now) {
		// Nothing fits beside it on a full disk. Cut short by a power cut, it is that of no boot.
		err = overwrite(file, now)
	}
	return last, err
}

// overwrite puts data over the beginning of a file, which takes no room.
func overwrite(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// MarkCleanStop writes the mark that ReadLastStop reads.
func MarkCleanStop(p layout.Paths) error {
	return atomicfile.Write(filepath.Join(p.Marks, cleanMark), nil, 0o600)
}
