package hostcheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TryCopies makes a file and what else images have, with an owner that is not this process's.
func (machine) TryCopies(dir string) (err error) {
	temp, err := os.MkdirTemp(nearest(dir), ".mote-check-*")
	if err != nil {
		return bare(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	file := filepath.Join(temp, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return bare(err)
	}
	const owner, mode = 1, 0o4711
	// In this order: a change of the owner takes the bit away.
	for what, try := range []func() error{
		func() error { return unix.Chown(file, owner, owner) },
		func() error { return unix.Chmod(file, mode) },
		func() error { return unix.Symlink("file", filepath.Join(temp, "symlink")) },
		func() error { return unix.Link(file, filepath.Join(temp, "link")) },
		func() error { return unix.Mkfifo(filepath.Join(temp, "pipe"), 0o600) },
		func() error { return os.WriteFile(filepath.Join(temp, "FILE"), nil, 0o600) },
	} {
		if err := try(); err != nil {
			return fmt.Errorf("%s: %w", [...]string{"owners", "modes", "symbolic links", "hard links", "pipes",
				"upper and lower case"}[what], bare(err))
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return err
	}
	if st.Uid != owner || st.Gid != owner || st.Mode&0o7777 != mode {
		return errors.New("owners and modes of files are not kept")
	}
	if entries, err := os.ReadDir(temp); err != nil || len(entries) != 5 {
		return errors.Join(errors.New("upper and lower case of names are not kept apart"), err)
	}
	return nil
}

// TryLocks locks a file for all processes, as a data folder is, and a range of it, as SQLite does.
func (machine) TryLocks(dir string) (err error) {
	f, err := os.CreateTemp(nearest(dir), ".mote-check-*")
	if err != nil {
		return bare(err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 1})
}
