//go:build linux

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cmd is an exec.Cmd whose process runs in a [Host]: a child of this process, that sees the host
// and is not seen by others. Pdeathsig must not be asked of it, as the thread that starts it ends
// at once. Without a host it is an exec.Cmd.
type Cmd struct {
	*exec.Cmd
	host *Host
}

// gate holds a program back until its process, whose number is known only then, has been moved to
// the host's cgroups.
const gate = `read -r _ <&%[1]d && exec %[1]d<&- && exec "$0" "$@"`

// Command prepares a command in the sandbox itself, for what takes one in a host, too.
func Command(ctx context.Context, name string, args ...string) *Cmd {
	return (*Host)(nil).Command(ctx, name, args...)
}

// Command prepares a command in the host, or in the sandbox if h is nil. In a host a name without a
// slash is looked for in the host; one that is not there ends with code 127.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	if h == nil {
		return &Cmd{Cmd: exec.CommandContext(ctx, name, args...)}
	}
	c := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", gate, name}, args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+Dir())
	return &Cmd{Cmd: c, host: h}
}

// String is the command as it was asked for, without what takes it to its host.
func (c *Cmd) String() string {
	if c.host == nil {
		return c.Cmd.String()
	}
	return strings.Join(c.Args[3:], " ")
}

// Start is that of exec.Cmd.
func (c *Cmd) Start() error {
	if c.host == nil {
		return c.Cmd.Start()
	}
	if err := c.start(); err != nil {
		return fmt.Errorf("start %s on host %s: %w", c.Args[3], c.host.config.Name, err)
	}
	return nil
}

func (c *Cmd) start() error {
	if !c.host.On() {
		return ErrOff
	}
	if len(c.ExtraFiles) > 5 {
		return errors.New("more than five extra files") // a shell knows single digits
	}
	closed, open, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer open.Close()
	c.Args[2] = fmt.Sprintf(gate, 3+len(c.ExtraFiles))
	c.ExtraFiles = append(c.ExtraFiles, closed)
	err = onThreadOfItsOwn(func() error {
		if err := enterNamespaces(c.host.first); err != nil {
			return err
		}
		return c.Cmd.Start()
	})
	closed.Close()
	if err != nil {
		return err
	}
	if err := c.host.groups.admit(c.Process.Pid); err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return err
	}
	// If it was killed while it stood there, waiting for it says so.
	_, _ = open.WriteString("\n")
	return nil
}

// Run is that of exec.Cmd.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is that of exec.Cmd, without the error output in the error.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput is that of exec.Cmd.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// enterNamespaces moves the calling thread, and the processes it will start, to where another
// process is.
func enterNamespaces(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrOff
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// Threads share a root folder, and those who share one cannot change mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("part thread from others: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS |
		unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP
	if err := unix.Setns(fd, all); err != nil {
		return fmt.Errorf("enter namespaces of process %d: %w", pid, err)
	}
	return nil
}

// onThreadOfItsOwn runs f on a thread that ends with it. It is never the process's first:
// /proc/self shows that one's namespaces.
func onThreadOfItsOwn(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() {
			// As long as this one is held here, the next is another.
			result <- onThreadOfItsOwn(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}

// hold reports whether a process is in the groups or below.
func (g *cgroups) hold(pid int) bool {
	// A process that is gone is nowhere.
	data, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	for line := range bytes.Lines(data) {
		parts := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 3)
		if len(parts) == 3 && (string(parts[2]) == "/"+g.name || bytes.HasPrefix(parts[2], []byte("/"+g.name+"/"))) {
			return true
		}
	}
	return false
}
