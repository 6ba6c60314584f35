//go:build linux && amd64

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// stageVariable tells the processes apart: the one that becomes the program, and the two that make
// the tracer an orphan, so that the program has no child it does not know of.
const stageVariable = "CLOCKSHIFT_STAGE"

// What a tracer is told by its environment.
const (
	targetVariable  = "CLOCKSHIFT_PID"
	shiftVariable   = "CLOCKSHIFT_BY"
	controlVariable = "CLOCKSHIFT_CONTROL"
)

// readyFD is where a tracer says that it traces: the first of an exec.Cmd's extra files.
const readyFD = 3

func init() {
	// Exec from another thread than the first would take it out of sight of the tracer, and ptrace
	// obeys one thread only.
	runtime.LockOSThread()
}

func main() {
	var err error
	switch os.Getenv(stageVariable) {
	case "":
		err = become()
	case "fork":
		err = stage("trace", os.NewFile(readyFD, "ready")).Start()
	default:
		err = trace()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "clockshift:", err)
		os.Exit(1)
	}
}

// become has a tracer started for this process and turns into the program.
func become() error {
	by := flag.Duration("by", 0, "how far to set the clock forward; negative sets it back")
	at := flag.String("at", "", "what to set the clock to, as in 2030-01-31T00:00:00Z, instead of -by")
	control := flag.String("control", "", "folder for the socket by which the clock is set again")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("program is missing: give it and its arguments")
	}
	if *at != "" {
		t, err := time.Parse(time.RFC3339, *at)
		if err != nil {
			return fmt.Errorf("read -at: %w", err)
		}
		*by = time.Until(t)
	}
	program, err := exec.LookPath(flag.Arg(0))
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	socket := ""
	if *control != "" {
		socket = filepath.Join(*control, strconv.Itoa(os.Getpid())+".sock")
	}
	for name, value := range map[string]string{targetVariable: strconv.Itoa(os.Getpid()), shiftVariable: by.String(),
		controlVariable: socket} {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("tell the tracer: %w", err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe to the tracer: %w", err)
	}
	if err := stage("fork", w).Run(); err != nil {
		return fmt.Errorf("start tracer: %w", err)
	}
	w.Close()
	if answer, err := io.ReadAll(r); err != nil || string(answer) != "ok" {
		return errors.New("tracer did not start")
	}
	for _, name := range []string{targetVariable, shiftVariable, controlVariable} {
		os.Unsetenv(name)
	}
	return fmt.Errorf("run %s: %w", program, syscall.Exec(program, flag.Args(), os.Environ()))
}

// stage is this executable once more, in another role and out of reach of the terminal's signals.
func stage(name string, ready *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"="+name)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}
