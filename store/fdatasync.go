package store

// SQLite syncs with fsync unless it is compiled for a system whose fdatasync works,
// which the module we take it from does not do. Linux's works, and on a log that is overwritten in
// place it saves the journal commit that fsync makes for the file's times: about a quarter of the
// time of a small commit, and a block written. So the C code in this process gets this fsync; Go's
// own os.File.Sync does not pass here, but syncData does the same.

/*
#define _GNU_SOURCE
#include <unistd.h>

int fsync(int fd) { return fdatasync(fd); }
*/
import "C"

import (
	"errors"
	"os"
	"syscall"
)

// syncData brings what was written to f to the disk.
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
