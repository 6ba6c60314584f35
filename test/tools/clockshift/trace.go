//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tracer sets the clock of the processes it traces.
type tracer struct {
	vdso *vdso

	mu      sync.Mutex // guards what follows, and keeps a new process from being missed between two settings
	seconds int64
	threads map[int]bool
}

// trace follows the process it was started for, and all that come of it, to their end.
func trace() error {
	pid, err := strconv.Atoi(os.Getenv(targetVariable))
	if err != nil {
		return fmt.Errorf("read process id: %w", err)
	}
	by, err := time.ParseDuration(os.Getenv(shiftVariable))
	if err != nil {
		return fmt.Errorf("read shift: %w", err)
	}
	v, err := readVDSO()
	if err != nil {
		return err
	}
	t := &tracer{vdso: v, seconds: seconds(by), threads: map[int]bool{pid: true}}
	const options = unix.PTRACE_O_TRACEEXEC |
		unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE
	if err := ptrace(unix.PTRACE_SEIZE, pid, options); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	if socket := os.Getenv(controlVariable); socket != "" {
		// One of that name is of a process that had this one's id before.
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove old socket: %w", err)
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			return fmt.Errorf("listen for settings: %w", err)
		}
		// Removes the socket as well.
		defer l.Close()
		go t.serve(l)
	}
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.WriteString("ok"); err != nil {
		return fmt.Errorf("say that tracing began: %w", err)
	}
	ready.Close()
	return t.follow()
}

func seconds(d time.Duration) int64 { return int64(d.Round(time.Second) / time.Second) }

func ptrace(request, pid, data int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), 0, uintptr(data), 0,
		0); errno != 0 {
		return errno
	}
	return nil
}

// follow resumes each thread that stops, after doing what the stop was for, until there is none
// left.
func (t *tracer) follow() error {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return fmt.Errorf("wait for processes: %w", err)
		}
		if status.Exited() || status.Signaled() {
			t.mu.Lock()
			delete(t.threads, pid)
			t.mu.Unlock()
			continue
		}
		request, signal := unix.PTRACE_CONT, 0
		switch event, stop := int(status)>>16, status.StopSignal(); event {
		case unix.PTRACE_EVENT_EXEC, unix.PTRACE_EVENT_STOP:
			if event == unix.PTRACE_EVENT_STOP && stop != unix.SIGTRAP {
				// Stopped by a signal, as Ctrl-Z does: it stays so until another continues it.
				request = unix.PTRACE_LISTEN
				break
			}
			if err := t.enter(pid, event == unix.PTRACE_EVENT_EXEC); err != nil && !gone(err) {
				fmt.Fprintf(os.Stderr, "clockshift: set clock of process %d: %v\n", pid, err)
			}
		case 0:
			signal = int(stop)
		}
		// One that was killed meanwhile cannot be continued, and need not.
		if err := ptrace(request, pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("continue process %d: %w", pid, err)
		}
	}
}

// enter sets the clock of a process that is new, or has begun a new program and with it got back
// the kernel's functions.
func (t *tracer) enter(pid int, program bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.threads[pid] = true
	if program {
		return t.vdso.replace(pid, t.seconds)
	}
	return t.vdso.set(pid, t.seconds)
}

func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrProcessDone)
}

// set gives all processes another clock.
func (t *tracer) set(by time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seconds = seconds(by)
	var errs []error
	for pid := range t.threads {
		if err := t.vdso.set(pid, t.seconds); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// serve answers those who set the clock.
func (t *tracer) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var text string
		answer := "ok\n"
		_, err = fmt.Fscanf(c, "by %s\n", &text)
		if err == nil {
			var by time.Duration
			if by, err = time.ParseDuration(text); err == nil {
				err = t.set(by)
			}
		}
		if err != nil {
			answer = err.Error() + "\n"
		}
		// Who asked may have gone; the clock is set all the same.
		_, _ = c.Write([]byte(answer))
		c.Close()
	}
}
