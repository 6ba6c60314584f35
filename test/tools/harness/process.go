package harness

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// endsWithin is how soon mote ends once it is asked to, as the command line promises.
const endsWithin = 10 * time.Second

// Process is a mote that may be ended and started again, with one log for all its runs.
type Process struct {
	name   string
	log    *os.File
	cmd    *sandbox.Cmd
	exited chan struct{} // closed once cmd has ended
	starts int
}

// NewProcess returns a process that was not started. The name tells it from others in what is said
// of it. The log becomes the process's: it is closed when the test ends, after the process was
// killed if it runs then.
func NewProcess(t *testing.T, name string, log *os.File) *Process {
	t.Helper()
	p := &Process{name: name, log: log}
	t.Cleanup(func() {
		if p.Running() {
			p.Kill(t)
		}
		log.Close()
	})
	return p
}

// Launch starts the process and returns at once.
func (p *Process) Launch(t *testing.T, cmd *sandbox.Cmd) {
	t.Helper()
	p.starts++
	p.Note("start %d at %s: %s", p.starts, time.Now().Format(time.RFC3339), cmd)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	// A Ctrl-C on the terminal is the sandbox's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		defer close(exited)
		// How it ended is in ProcessState, for whoever waits.
		_ = cmd.Wait()
	}()
}

// Note writes a line between those of the process.
func (p *Process) Note(format string, args ...any) {
	fmt.Fprintf(p.log, "--- "+format+"\n", args...)
}

// Starts is how often it was started.
func (p *Process) Starts() int { return p.starts }

// Running reports whether it was started and has not ended since.
func (p *Process) Running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Alive is an error that ends a wait, with the end of the log, unless the process runs.
func (p *Process) Alive() error {
	switch {
	case p.cmd == nil:
		return fmt.Errorf("%w: %s was not started", ErrStop, p.name)
	case !p.Running():
		return fmt.Errorf("%w: %s ended: %v\n%s", ErrStop, p.name, p.State(), p.Tail(20))
	}
	return nil
}

// Exited is closed once the process that was started last has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// State is how the process that was started last ended, once it has.
func (p *Process) State() *os.ProcessState { return p.cmd.ProcessState }

// Stop sends SIGTERM and wants the process to end by it, soon and without a fault. One that does
// not end says where it is stuck, into the log, and is killed.
func (p *Process) Stop(t *testing.T) {
	t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("send SIGTERM to %s: %v", p.name, err)
	}
	select {
	case <-p.exited:
		Promised(t, p.name+" ended by SIGTERM", time.Since(begin), endsWithin)
		if code := p.State().ExitCode(); code != 0 {
			t.Errorf("%s ended with code %d after SIGTERM\n%s", p.name, code, p.Tail(20))
		}
	case <-time.After(2 * endsWithin):
		t.Errorf("%s did not end within %v of SIGTERM\n%s", p.name, 2*endsWithin, p.Tail(20))
		p.dumpGoroutines()
		p.Kill(t)
	}
}

// dumpGoroutines makes a stuck process say where it is stuck: Go answers SIGQUIT with all stacks.
func (p *Process) dumpGoroutines() {
	if p.cmd.Process.Signal(syscall.SIGQUIT) != nil {
		return
	}
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
	}
}

// Kill ends the process without a warning.
func (p *Process) Kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("kill %s: %v", p.name, err)
	}
	<-p.exited
}

// LogName is the log's file.
func (p *Process) LogName() string { return p.log.Name() }

// Tail is the end of the log.
func (p *Process) Tail(lines int) string {
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
