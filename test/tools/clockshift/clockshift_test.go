//go:build linux && amd64

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asVariable has this test's executable be something else: clockshift, or a program whose clock is
// shifted.
const asVariable = "CLOCKSHIFT_TEST_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(asVariable) {
	case "program":
		tell()
	case "":
		if os.Getenv(stageVariable) == "" {
			os.Exit(m.Run())
		}
		main()
	default:
		os.Unsetenv(asVariable)
		main()
	}
}

// tell prints the time, by the three ways a Go program and a shell have, at the start and at each
// line of input.
func tell() {
	began := time.Now()
	for lines := bufio.NewScanner(os.Stdin); ; {
		date, err := exec.Command("date", "+%s").Output()
		if err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		var tv syscall.Timeval
		if err := syscall.Gettimeofday(&tv); err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		fmt.Println(time.Now().Unix(), tv.Sec, strings.TrimSpace(string(date)), time.Since(began) < time.Minute)
		if !lines.Scan() {
			os.Exit(7)
		}
	}
}

func TestClockshift(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may trace a process that is not its child everywhere")
	}
	control := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-by", "9600h", "-control", control, "env", asVariable+"=program", self)
	cmd.Env = append(os.Environ(), asVariable+"=clockshift")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	want := func(by time.Duration) {
		t.Helper()
		if !lines.Scan() {
			_ = cmd.Wait()
			t.Fatalf("the program does not start: %v", cmd.ProcessState)
		}
		f := strings.Fields(lines.Text())
		if len(f) != 4 || f[3] != "true" {
			t.Fatalf("it says %q; the monotonic clock must go on as it was", lines.Text())
		}
		for i, way := range []string{"time.Now", "gettimeofday", "date"} {
			seconds, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if apart := time.Until(time.Unix(seconds, 0)) - by; apart.Abs() > 5*time.Second {
				t.Errorf("by %s the clock is off by %v more than %v", way, apart, by)
			}
		}
	}
	want(9600 * time.Hour)

	c, err := net.Dial("unix", filepath.Join(control, strconv.Itoa(cmd.Process.Pid)+".sock"))
	if err != nil {
		t.Fatalf("the program has not the process id of clockshift: %v", err)
	}
	defer c.Close()
	fmt.Fprintln(c, "by -100h")
	if answer, err := bufio.NewReader(c).ReadString('\n'); err != nil || answer != "ok\n" {
		t.Fatalf("set clock: %q, %v", answer, err)
	}
	fmt.Fprintln(in)
	want(-100 * time.Hour)

	in.Close()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("ended with %v, want the program's code 7", err)
	}
}
