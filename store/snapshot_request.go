package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// Only one process can open the store, so one that wants a copy of it asks that process over a
// socket beside the file: a line with where to copy to, answered by a line that is copied or says
// why not.

const copied = "copied"

func lockPath(path string) string { return path + ".lock" }

// socketPath names the socket by way of an open folder: the name of a socket may have 107 bytes
// only, those of folders are longer at times.
func socketPath(dir *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s.sock", dir.Fd(), filepath.Base(path))
}

// serveRequests copies the store for other processes until ctx or the store ends.
func (s *snapshots) serveRequests(ctx context.Context) {
	l, err := listenForCopies(s.path)
	if err != nil {
		// Some file systems have no sockets. All else works on them.
		s.log.Warn("other processes cannot take snapshots of this store", zap.Error(err))
		return
	}
	s.serveListener(ctx, l)
	// Ours still: Close keeps the lock until this has returned.
	_ = os.Remove(s.path + ".sock")
}

func listenForCopies(path string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open folder of store: %w", err)
	}
	defer dir.Close()
	// A killed process leaves its socket behind; whose store this is was decided by the lock.
	if err := os.Remove(path + ".sock"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(dir, path), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its name goes through dir, which is closed by then; serveListener removes it
	if err := os.Chmod(path+".sock", 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// serveListener closes l when ctx ends.
func (s *snapshots) serveListener(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		<-ctx.Done()
		_ = l.Close() // ends a blocked Accept
	})
	pauses := retry.Backoff{First: 50 * time.Millisecond, Last: 5 * time.Second}
	var failures retry.Failures
	for ctx.Err() == nil {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
		case err != nil:
			// Out of file descriptors, for one. The store has better things to do than to end by
			// that.
			if failures.News(err) {
				s.log.Warn("other processes cannot take snapshots of this store for now", zap.Error(err))
			}
			_ = pauses.Wait(ctx)
		default:
			pauses.Reset()
			if failures.Recovered() {
				s.log.Info("other processes can take snapshots of this store again")
			}
			wg.Go(func() { s.serveCopy(ctx, c) })
		}
	}
}

// serveCopy serves one request. It ends early when the other side hangs up.
func (s *snapshots) serveCopy(ctx context.Context, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	r := bufio.NewReader(c)
	raw, err := r.ReadString('\n')
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() { _ = c.Close() }()
	wg.Go(func() {
		_, _ = r.ReadByte() // nothing more is said: this returns when the connection ends
		cancel()
	})
	answer := copied
	if err := s.copyTo(ctx, strings.TrimSuffix(raw, "\n")); err != nil {
		answer = strings.ReplaceAll(err.Error(), "\n", ": ")
	}
	_, _ = fmt.Fprintln(c, answer) // who has hung up wants no answer
}

// requestCopy has the process that runs the store copy it to raw.
func requestCopy(ctx context.Context, path, raw string) error {
	raw, err := filepath.Abs(raw)
	if err != nil {
		return fmt.Errorf("name copy: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("open folder of store: %w", err)
	}
	defer dir.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socketPath(dir, path))
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%w: %w", ErrInUse, err) // by a process that takes no requests
		}
		return fmt.Errorf("request a copy from the process that runs the store: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := fmt.Fprintln(c, raw); err != nil {
		return fmt.Errorf("ask for a copy: %w", err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("wait for the copy: %w", err))
	}
	if answer = strings.TrimSuffix(answer, "\n"); answer != copied {
		return fmt.Errorf("copy store: %s", answer)
	}
	return nil
}
