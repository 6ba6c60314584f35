package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Write replaces the file name by data. Readers and a power cut find either what was there or all
// of data; once Write has returned it is on disk. The file gets mode whatever the process's umask
// says.
func Write(name string, data []byte, mode os.FileMode) error {
	return WriteForGroup(name, data, mode, -1)
}

// WriteForGroup is Write for a file that belongs to a group, from the moment it is there; -1 is the
// group that new files get.
func WriteForGroup(name string, data []byte, mode os.FileMode, gid int) error {
	err := replace(name, data, mode, gid)
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	// Most of what a start writes is there from the last one, which a full disk must not hinder.
	if err != nil && !(full && isAlready(name, data, mode, gid)) {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// The name is part of the folder, which is synced by itself.
	return SyncDir(filepath.Dir(name))
}

func replace(name string, data []byte, mode os.FileMode, gid int) error {
	// A process that is killed leaves this file. Its name says whose it is, where others write too.
	tmp, err := os.CreateTemp(filepath.Dir(name), ".new-"+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if gid >= 0 {
		err = errors.Join(err, tmp.Chown(-1, gid))
	}
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// isAlready reports whether a file is as it is to be written.
func isAlready(name string, data []byte, mode os.FileMode, gid int) bool {
	st, err := os.Lstat(name)
	if err != nil || st.Mode() != mode {
		return false
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || gid >= 0 && int(owner.Gid) != gid {
		return false
	}
	was, err := os.ReadFile(name)
	return err == nil && bytes.Equal(was, data)
}

// SyncDir makes what was created, renamed or removed in a folder last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder to sync: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
