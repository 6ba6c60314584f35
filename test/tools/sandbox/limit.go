//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// limit is one that the kernel has for the whole machine, and that sandboxes with several hosts
// raise while they run: it is root's in the first user namespace, and containers have to stay in
// that. Sandboxes may run beside each other, and be killed; so what the limit was stands in a file
// that each of those who raised it has locked, and the last of them, or the next, puts it back.
type limit struct {
	file   string // the kernel's
	record string // what the limit was
	enough int
}

// instances is what a machine may have of inotify's, of which one server takes 21 of the usual 128.
var instances = limit{file: "/proc/sys/fs/inotify/max_user_instances", record: "/tmp/mote-e2e-inotify-instances",
	enough: 8192}

// raised holds the record of instances open once a host was added, which is until this process
// ends, however that is.
var raised = sync.OnceValues(instances.raise)

// raise raises the limit until what it returns is closed, and lower is called.
func (l limit) raise() (*os.File, error) {
	for {
		f, err := os.OpenFile(l.record, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("raise limit: %w", err)
		}
		again, err := l.raiseWith(f)
		if err != nil {
			return nil, fmt.Errorf("raise limit: %w", errors.Join(err, f.Close()))
		}
		if !again {
			return f, nil
		}
		f.Close()
	}
}

// raiseWith raises the limit with the record open, and reports whether that was removed meanwhile.
func (l limit) raiseWith(f *os.File) (again bool, err error) {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH); err != nil {
		return false, fmt.Errorf("lock %s: %w", l.record, err)
	}
	if !l.isRecord(f) {
		return true, nil
	}
	// In this order: who raises the limit has written first what it was.
	now, err := readNumber(l.file)
	if err != nil {
		return false, err
	}
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() == 0 {
		if _, err := f.WriteAt([]byte(strconv.Itoa(now)), 0); err != nil {
			return false, err
		}
	}
	if now >= l.enough {
		return false, nil
	}
	return false, os.WriteFile(l.file, []byte(strconv.Itoa(l.enough)), 0o644)
}

// lower puts the limit back if nobody needs it raised any more, and nobody else has changed it.
func (l limit) lower() error {
	f, err := os.OpenFile(l.record, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put limit back: %w", err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("put limit back: lock %s: %w", l.record, err)
	}
	if !l.isRecord(f) {
		return nil
	}
	if err := errors.Join(l.restore(f), os.Remove(l.record)); err != nil {
		return fmt.Errorf("put limit back: %w", err)
	}
	return nil
}

func (l limit) restore(record *os.File) error {
	info, err := record.Stat()
	if err != nil || info.Size() == 0 {
		// Whoever made it was killed before raising anything.
		return err
	}
	was, err := readNumber(l.record)
	if err != nil {
		return err
	}
	now, err := readNumber(l.file)
	if err != nil || now != l.enough {
		return err
	}
	return os.WriteFile(l.file, []byte(strconv.Itoa(was)), 0o644)
}

// isRecord reports whether an open file is still the one of that name.
func (l limit) isRecord(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(l.record)
	return err == nil && os.SameFile(opened, named)
}

func readNumber(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	return n, nil
}
