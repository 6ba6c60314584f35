package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// layout counts the changes of what lies where in a data folder that an older mote would not
// understand.
const layout = 1

var (
	// ErrInUse means that another mote runs on the folder.
	ErrInUse = errors.New("data-dir is in use")
	// ErrNewer means that a newer mote wrote the folder.
	ErrNewer = errors.New("data-dir was written by a newer mote")
)

// Versions are what the version file records beside the layout, both for people and to refuse a
// step back.
type Versions struct {
	// Mote is this program's version, for people.
	Mote string
	// Kubernetes is its Kubernetes version, "v1.37.2". A folder that held a newer minor version is
	// refused: its objects may be stored in a form this one cannot read.
	Kubernetes string
}

// Dir is a data folder this process holds.
type Dir struct {
	path string
	lock *os.File
	// madeLock and madeDir undo what Open made when nothing came of it.
	madeLock bool
	madeDirs []string
}

// Open makes the folder if it is not there, takes it for this process, and checks that no newer
// mote wrote it. When it refuses, nothing has changed.
func Open(path string, v Versions) (_ *Dir, err error) {
	d := &Dir{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Abandon())
		}
	}()
	if d.madeDirs, err = makeDirs(path); err != nil {
		return nil, err
	}
	if err := checkVersion(At(path).versionFile(), v); err != nil {
		return nil, err
	}
	if err := d.take(); err != nil {
		return nil, err
	}
	return d, nil
}

// Lock takes a folder that is there for this process, whichever mote wrote it, so that none starts
// on it meanwhile.
func Lock(path string) (*Dir, error) {
	d := &Dir{path: path}
	return d, d.take()
}

// take locks the folder. The kernel releases the lock with the process, so a crash leaves nothing
// to remove by hand.
func (d *Dir) take() error {
	name := At(d.path).lockFile()
	_, statErr := os.Lstat(name)
	f, err := lockExclusive(name)
	if errors.Is(err, errHeld) {
		pid := 0
		if f, err := os.Open(name); err == nil {
			pid = readPID(f)
			_ = f.Close()
		}
		by := ""
		if pid > 0 {
			by = fmt.Sprintf(" by another mote (process %d)", pid)
		}
		return fmt.Errorf("%w%s: %s: stop that one, or give this one a --data-dir of its own", ErrInUse, by, d.path)
	}
	if err != nil {
		return fmt.Errorf("lock data-dir %s: %w", d.path, err)
	}
	d.lock, d.madeLock = f, errors.Is(statErr, fs.ErrNotExist)
	// Over the last number before the rest is cut off: on a full disk the block that it has is all
	// there is. Without room for a number nobody can look who holds the lock, but it holds.
	text := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if _, err := f.WriteAt(text, 0); err != nil && !isFull(err) {
		return fmt.Errorf("write lock of data-dir: %w", err)
	}
	if err := f.Truncate(int64(len(text))); err != nil && !isFull(err) {
		return fmt.Errorf("write lock of data-dir: %w", err)
	}
	return nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Commit records the versions: from here on the folder is this mote's. It also removes what a mote
// that was killed left half-written.
func (d *Dir) Commit(v Versions) error {
	d.madeLock, d.madeDirs = false, nil
	if err := d.sweep(); err != nil {
		return err
	}
	text := fmt.Sprintf("layout %d\nmote %s\nkubernetes %s\n", layout, v.Mote, v.Kubernetes)
	if was, err := os.ReadFile(At(d.path).versionFile()); err == nil && string(was) == text {
		return nil // also when the disk is full
	}
	return atomicfile.Write(At(d.path).versionFile(), []byte(text), 0o644)
}

// RecordOutside notes a file that mote makes outside of the folder, so that `mote uninstall` knows
// it.
func (d *Dir) RecordOutside(path string) error {
	known, err := Outside(d.path)
	if err != nil {
		return err
	}
	if slices.Contains(known, path) {
		return nil
	}
	return atomicfile.Write(At(d.path).outsideFile(), []byte(strings.Join(append(known, path), "\n")+"\n"), 0o644)
}

// Close gives the folder free.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

// Abandon releases the folder and removes what Open made.
func (d *Dir) Abandon() error {
	var errs []error
	if d.madeLock {
		errs = append(errs, os.Remove(At(d.path).lockFile()))
	}
	errs = append(errs, d.Close())
	for _, dir := range slices.Backward(d.madeDirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove folder made for nothing: %w", err))
		}
	}
	d.madeLock, d.madeDirs = false, nil
	return errors.Join(errs...)
}

// Outside lists the files mote made outside of a data folder.
func Outside(path string) ([]string, error) {
	data, err := os.ReadFile(At(path).outsideFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of files outside data-dir: %w", err)
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}

func checkVersion(path string, v Versions) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(bytes.TrimSpace(data)) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read version of data-dir: %w", err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		fields[key] = value
	}
	was, err := strconv.Atoi(fields["layout"])
	if err != nil || was > layout || newerMinor(fields["kubernetes"], v.Kubernetes) {
		by := fields["mote"]
		if by == "" {
			by = "one this mote does not know"
		}
		return fmt.Errorf("%w (%s) than this one (%s): %s: install that version again, or give another --data-dir",
			ErrNewer, by, v.Mote, filepath.Dir(path))
	}
	return nil
}

// newerMinor reports whether Kubernetes version a is of a later minor than b. A version that cannot
// be read is not.
func newerMinor(a, b string) bool {
	var aMajor, aMinor, bMajor, bMinor int
	if _, err := fmt.Sscanf(a, "v%d.%d", &aMajor, &aMinor); err != nil {
		return false
	}
	if _, err := fmt.Sscanf(b, "v%d.%d", &bMajor, &bMinor); err != nil {
		return false
	}
	return aMajor > bMajor || (aMajor == bMajor && aMinor > bMinor)
}

// makeDirs makes a folder and those above it, and returns the ones it made.
func makeDirs(path string) (made []string, err error) {
	var missing []string
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look at data-dir: %w", err)
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		// Pods' processes of any user walk through to their files.
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, fmt.Errorf("make data-dir: %w", err)
		}
		made = append(made, dir)
	}
	return made, nil
}
