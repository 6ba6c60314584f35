package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if err := replace(name, data, mode, gid); err != nil {
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
