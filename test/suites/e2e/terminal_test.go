package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/test/tools/harness"
)

// terminal is a user at a pseudo-terminal: types, and reads what appears.
type terminal struct {
	t    *testing.T
	ptmx *os.File

	mu   sync.Mutex // guards seen
	seen strings.Builder
}

// startOnTerminal starts cmd with a pseudo-terminal as its own.
func startOnTerminal(t *testing.T, cmd *exec.Cmd, rows, columns uint16) *terminal {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ptmx.Close() })
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	term := &terminal{t: t, ptmx: ptmx}
	term.resize(t, rows, columns)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			// The read fails when the last holder of the terminal has ended.
			n, err := ptmx.Read(buf)
			term.mu.Lock()
			term.seen.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (x *terminal) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(x.ptmx.Fd()), unix.TIOCSWINSZ,
		&unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

func (x *terminal) send(text string) {
	x.t.Helper()
	if _, err := x.ptmx.WriteString(text); err != nil {
		x.t.Fatalf("type %q: %v", text, err)
	}
}

// expect waits for text to appear.
func (x *terminal) expect(text string) {
	x.t.Helper()
	harness.Eventually(x.t, 30*time.Second, fmt.Sprintf("%q on the terminal", text),
		func(context.Context) error { return x.shows(text) })
}

// shows says what is on the terminal if text is not.
func (x *terminal) shows(text string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !strings.Contains(x.seen.String(), text) {
		return fmt.Errorf("it shows:\n%s", x.seen.String())
	}
	return nil
}
