//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stageVariable tells the processes apart: the one the user started, the first process of the
// sandbox, the test in it, and for each host in the sandbox the one that started it and its first
// process.
const stageVariable = "SANDBOX_STAGE"

// dirVariable names the folder that Dir returns.
const dirVariable = "SANDBOX_DIR"

// Dir is a folder on the host's disk for this run. It goes with the sandbox, and its name is short:
// sockets are put below it.
func Dir() string { return os.Getenv(dirVariable) }

// Run calls test inside a sandbox and returns its exit code. It re-executes the running program
// twice to get there, so it belongs at the very start of TestMain.
func Run(test func() int) int {
	var (
		code int
		err  error
	)
	switch os.Getenv(stageVariable) {
	case "":
		code, err = outside()
	case "init":
		code, err = first()
	case "host":
		code, err = outsideHost()
	case "host-init":
		code, err = firstOfHost()
	default:
		os.Unsetenv(stageVariable)
		if err = moveIn(); err == nil {
			return test()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return code
}

// moveIn gives the test a home folder of its own: kubectl and Helm keep there what they learned of
// a server, by its address, and another sandbox's has the same.
func moveIn() error {
	home := filepath.Join(layersDir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("make home folder: %w", err)
	}
	return os.Setenv("HOME", home)
}

// outside makes the cgroups and starts the sandbox's first process in new namespaces.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("must be root to make namespaces")
	}
	groups, err := makeCgroups(fmt.Sprintf("mote-e2e-%d", os.Getpid()))
	if err != nil {
		return 0, err
	}
	defer groups.remove()
	dir := fmt.Sprintf("/tmp/mote-e2e-%d", os.Getpid())
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, fmt.Errorf("make sandbox folder: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := os.Setenv(dirVariable, dir); err != nil {
		return 0, fmt.Errorf("name sandbox folder: %w", err)
	}
	// Whoever raised it in the sandbox is gone then, also if it was killed.
	defer func() { err = errors.Join(err, instances.lower()) }()
	return launch(again("init"), groups)
}

// launch runs cmd in new namespaces, whose cgroup roots are the groups. Should this process be
// killed, the kernel kills that one, and with it all others in its namespaces.
func launch(cmd *exec.Cmd, groups *cgroups) (int, error) {
	// A parent-death signal follows the thread, not the process.
	runtime.LockOSThread()
	if err := groups.enter(); err != nil {
		return 0, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWCGROUP,
		Pdeathsig: syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	err := cmd.Start()
	// The roots of the cgroup namespace are fixed now; in version 2 a root with children must hold
	// no process.
	if back := groups.leave(); err == nil {
		err = back
	}
	if err != nil {
		return 0, fmt.Errorf("start first process: %w", err)
	}
	return wait(cmd, signals)
}

// first is process 1 of the sandbox: it furnishes it, starts the test and reaps the orphans that
// fall to it.
func first() (int, error) {
	if err := (machine{hostname: Hostname, layers: layersDir}).furnish(); err != nil {
		return 0, err
	}
	if err := connect(); err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	cmd := again("test")
	// A group of its own: what a terminal sends on Ctrl-C arrives once, through us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start test: %w", err)
	}
	go func() {
		for s := range signals {
			// The test may have ended meanwhile; then there is nobody to tell.
			_ = syscall.Kill(cmd.Process.Pid, s.(syscall.Signal))
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the test: %w", err)
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == cmd.Process.Pid:
			return 128 + int(status.Signal()), nil
		}
	}
}

func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// wait passes signals on and gives the sandbox a while to collect what it knows before killing it.
func wait(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var deadline <-chan time.Time
	for {
		select {
		case s := <-signals:
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("pass on %v: %w", s, err)
			}
			if deadline == nil {
				deadline = time.After(30 * time.Second)
			}
		case <-deadline:
			if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return 0, fmt.Errorf("kill sandbox: %w", err)
			}
		case err := <-done:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, fmt.Errorf("wait for sandbox: %w", err)
			}
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runAll runs command lines one after the other.
func runAll(lines ...string) error {
	for _, l := range lines {
		words := strings.Fields(l)
		if err := run(words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}
