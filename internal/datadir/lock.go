package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

// RestartRefused waits until another mote tries to start on the folder, which d keeps it from, and
// reports whether one did before ctx ended. One that only looks who holds the lock does not count.
func (d *Dir) RestartRefused(ctx context.Context) (bool, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return false, fmt.Errorf("watch lock of data-dir: %w", err)
	}
	defer unix.Close(fd)
	// Who wants to run opens the file to write to it.
	if _, err := unix.InotifyAddWatch(fd, At(d.path).lockFile(), unix.IN_CLOSE_WRITE); err != nil {
		return false, fmt.Errorf("watch lock of data-dir: %w", err)
	}
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(watchPoll.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("watch lock of data-dir: %w", err)
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, nil
}

// errHeld means that a process runs on the folder.
var errHeld = errors.New("lock is held")

// Bounds of the waits for what takes microseconds: a process that looks at the lock lets go of it,
// one that has just taken it writes its number.
const (
	lockPatience   = 5 * time.Second
	holderPatience = 2 * time.Second
)

// watchPoll is how often a watch of the lock looks whether it was cancelled.
const watchPoll = 100 * time.Millisecond

func lockRetry() retry.Backoff {
	return retry.Backoff{First: time.Millisecond, Last: 50 * time.Millisecond, Jitter: 0.5}
}

// lockExclusive opens and locks the file name, and makes it if necessary.
//
// The lock is flock's: exclusive for a mote that runs, shared for the moment in which [Holder]
// looks. flock cannot be queried without taking it, and earlier versions look and run that way too.
// So a refused exclusive lock does not yet mean that a mote runs: only if a shared one is refused
// as well.
func lockExclusive(name string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	for backoff := lockRetry(); ; {
		f, err := tryLock(name)
		if err == nil || !errors.Is(err, errLookedAt) {
			return f, err
		}
		if backoff.Wait(ctx) != nil {
			return nil, err
		}
	}
}

// errLookedAt means that the lock could not be had just now, although no mote runs.
var errLookedAt = errors.New("another process is looking at the lock all the time")

func tryLock(name string) (_ *os.File, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	switch err := flock(f, unix.LOCK_EX); {
	case errors.Is(err, errHeld):
		if err := flock(f, unix.LOCK_SH); err != nil {
			return nil, err
		}
		return nil, errLookedAt
	case err != nil:
		return nil, err
	}
	// Abandon may have removed the file since it was opened: then the lock on it keeps out nobody.
	current, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errLookedAt
	}
	if err != nil {
		return nil, err
	}
	own, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(own, current) {
		return nil, errLookedAt
	}
	return f, nil
}

// flock takes a lock without waiting.
func flock(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errHeld
	}
	return err
}

// Holder returns the process that runs on a data folder, or 0. It is never the number of a process
// that ended: the one in the file counts only while the lock is held, and only if that process has
// the file open.
func Holder(path string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), holderPatience)
	defer cancel()
	for backoff := lockRetry(); ; {
		pid, err := holder(At(path).lockFile())
		if !errors.Is(err, errUnnamed) {
			return pid, err
		}
		if backoff.Wait(ctx) != nil {
			return 0, fmt.Errorf("%w by a process that did not write its number to %s", ErrInUse, At(path).lockFile())
		}
	}
}

// errUnnamed means that the holder of the lock has not written its number yet.
var errUnnamed = errors.New("holder of the lock is not known yet")

func holder(name string) (int, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open lock of data-dir: %w", err)
	}
	defer f.Close()
	err = flock(f, unix.LOCK_SH)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, errHeld) {
		return 0, fmt.Errorf("look at lock of data-dir: %w", err)
	}
	pid := readPID(f)
	if pid <= 0 {
		return 0, errUnnamed
	}
	own, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at lock of data-dir: %w", err)
	}
	switch open, err := hasOpen(pid, own); {
	case errors.Is(err, fs.ErrPermission):
		// Whoever may not look into the process may not end it either.
		return pid, nil
	case err != nil:
		return 0, fmt.Errorf("look at process %d: %w", pid, err)
	case !open:
		// The number is the last holder's: this one has not replaced it yet.
		return 0, errUnnamed
	}
	return pid, nil
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, file fs.FileInfo) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		// An error of one of them says that it was closed meanwhile, or is no file.
		if info, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && os.SameFile(info, file) {
			return true, nil
		}
	}
	return false, nil
}

func readPID(f *os.File) int {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return 0
	}
	return pid
}
