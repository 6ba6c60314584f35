package runtimetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime"
)

// childEnv carries the configuration to the child and marks it as one.
const childEnv = "MOTE_RUNTIMETEST_CHILD"

const readyLine = "runtimetest: ready"

// Main is for TestMain. In a child started by Start it runs the runtime and does not return; in any
// other process it returns at once.
func Main() {
	encoded := os.Getenv(childEnv)
	if encoded == "" {
		return
	}
	if err := runChild(encoded); err != nil {
		fmt.Fprintln(os.Stderr, "runtimetest child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runChild(encoded string) error {
	var cfg runtime.Config
	if err := json.Unmarshal([]byte(encoded), &cfg); err != nil {
		return fmt.Errorf("parse configuration: %w", err)
	}
	// The child has a network namespace of its own; CRI streams over loopback.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cfg.Logger = zap.New(zapcore.NewCore(
		zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.Lock(os.Stderr), zap.InfoLevel))
	r, err := runtime.New(cfg)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.Ready():
		fmt.Println(readyLine)
		err := <-done
		fmt.Fprintln(os.Stderr, "runtimetest: run returned:", err, ctx.Err())
		return err
	case err := <-done:
		if err == nil && ctx.Err() == nil {
			err = errors.New("runtime ended without a reason")
		}
		return err
	}
}

// Child is a process that runs a Runtime.
type Child struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  *strings.Builder
	done chan error
	// StartTook is the time from exec to readiness.
	StartTook time.Duration
}

// encodable drops the fields that cannot be passed to a child.
func encodable(c runtime.Config) map[string]any {
	return map[string]any{"DataDir": c.DataDir, "Snapshotter": c.Snapshotter, "RegistriesFile": c.RegistriesFile}
}

// Start runs a Runtime in a process and a network namespace of its own and waits until it is ready.
// TestMain must call Main.
func Start(t testing.TB, cfg runtime.Config) *Child {
	t.Helper()
	c, err := TryStart(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TryStart is Start for tests that expect it to fail.
func TryStart(t testing.TB, cfg runtime.Config) (*Child, error) {
	t.Helper()
	encoded, err := json.Marshal(encodable(cfg))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	c := &Child{t: t, log: &strings.Builder{}, done: make(chan error, 1)}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), childEnv+"="+string(encoded))
	c.cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	logFile, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	c.cmd.Stderr = logFile
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("connect to child: %w", err)
	}
	start := time.Now()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start child: %w", err)
	}
	ready := make(chan bool, 1)
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			if s.Text() == readyLine {
				ready <- true
			}
		}
		close(ready)
		c.done <- c.cmd.Wait()
	}()
	t.Cleanup(func() {
		c.Kill()
		if t.Failed() {
			data, _ := os.ReadFile(logFile.Name())
			t.Logf("runtime's log:\n%s", data)
		}
	})
	select {
	case ok := <-ready:
		if !ok {
			data, _ := os.ReadFile(logFile.Name())
			return c, fmt.Errorf("runtime ended before it was ready:\n%s", data)
		}
	case <-time.After(60 * time.Second):
		return c, errors.New("runtime was not ready within 60 s")
	}
	c.StartTook = time.Since(start)
	return c, nil
}

// Pid returns the child's process id.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Stop asks the child to end and fails the test unless it does so cleanly.
func (c *Child) Stop() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(unix.SIGTERM); err != nil {
		c.t.Fatalf("signal runtime: %v", err)
	}
	select {
	case err := <-c.done:
		c.done <- nil
		if err != nil {
			c.t.Fatalf("runtime did not stop cleanly: %v", err)
		}
	case <-time.After(30 * time.Second):
		c.t.Fatal("runtime did not stop within 30 s")
	}
}

// Kill ends the child as a crash would. It may be called again.
func (c *Child) Kill() {
	if c.cmd.Process == nil {
		return
	}
	_ = c.cmd.Process.Kill() // it may have ended by itself
	err := <-c.done
	c.done <- err
}
