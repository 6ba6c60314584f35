package nfttool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// timeout bounds one run of nft; a hung one must not stop repairs forever.
	timeout = 30 * time.Second
	// pipeWait is how long output is waited for after nft was killed.
	pipeWait = time.Second
)

var (
	// ErrNotFound is in the error of a command whose table, chain or set does not exist.
	ErrNotFound = errors.New("no such object")
	// ErrUnsupported is in the error of a run that cannot succeed on this host: nft is not
	// installed, or the tool or the kernel lacks what the script needs. No other failure has it, so
	// the next run may succeed.
	ErrUnsupported = errors.New("not supported by this host")
)

// Error is a failed run of nft.
type Error struct {
	// Args are the arguments nft was run with.
	Args []string
	// Message is what nft printed, trimmed.
	Message string
	// Err is why the run failed: often an [exec.ExitError].
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	text := fmt.Sprintf("run nft %s: %v", strings.Join(e.Args, " "), e.Err)
	if e.Message != "" {
		text += ": " + strings.Join(strings.Fields(e.Message), " ")
	}
	return text
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is classifies the error. nft has one exit code for everything, so its message decides.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.notFound()
	case ErrUnsupported:
		return e.unsupported()
	}
	return false
}

// exited reports whether nft ended by itself; a killed one proves nothing.
func (e *Error) exited() bool {
	var exit *exec.ExitError
	return errors.As(e.Err, &exit) && exit.Exited()
}

// notFound recognises messages about the arguments. Those about a line of a script begin with its
// position, and name many things that may be missing: a kernel module, for one.
func (e *Error) notFound() bool {
	first, _, _ := strings.Cut(e.Message, "\n")
	return e.exited() && strings.HasPrefix(first, "Error: ") && strings.Contains(first, "No such file or directory")
}

var (
	// inScript matches a message about a line of a script.
	inScript = regexp.MustCompile(`^/dev/stdin:[0-9:-]+: Error: (.*)`)
	// fromKernel introduces the kernel's answer; other messages about a script are the tool's own,
	// which does not understand it and never will.
	fromKernel = "Could not process rule: "
	// missing are answers of a kernel without nftables.
	missing = []string{
		"Protocol not supported", "Operation not supported", "Address family not supported by protocol",
		"Function not implemented",
	}
	// missingPart are answers of a kernel without some part of nftables.
	missingPart = append([]string{"No such file or directory", "Invalid argument"}, missing...)
)

func (e *Error) unsupported() bool {
	if errors.Is(e.Err, exec.ErrNotFound) {
		return true
	}
	if !e.exited() {
		return false
	}
	first, _, _ := strings.Cut(e.Message, "\n")
	ends := func(answer string) bool { return strings.HasSuffix(first, answer) }
	if m := inScript.FindStringSubmatch(first); m != nil {
		return !strings.HasPrefix(m[1], fromKernel) || slices.ContainsFunc(missingPart, ends)
	}
	return slices.ContainsFunc(missing, ends)
}

// Available reports whether the tool is installed.
func Available() bool {
	_, err := exec.LookPath("nft")
	return err == nil
}

// Run runs the tool with script on its standard input and returns what it printed. Its errors are
// of type [*Error].
func Run(ctx context.Context, script string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer in %s", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", args...)
	cmd.WaitDelay = pipeWait
	// Messages are matched above, so they must not be translated.
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(script)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return "", &Error{Args: args, Message: strings.TrimSpace(stderr.String()), Err: err}
	}
	return stdout.String(), nil
}
