package harness

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/sandbox"
)

// Output runs a program to its end on a host, or in the sandbox itself if h is nil, and returns all
// that it wrote. It must succeed, and within two minutes.
func Output(t *testing.T, h *sandbox.Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := h.Command(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		where := ""
		if h != nil {
			where = " on " + h.Name()
		}
		t.Fatalf("run %s%s: %v\n%s", cmd, where, err, out)
	}
	return string(out)
}

// Kubectl is mote's own, and the cluster it talks to.
type Kubectl struct {
	Program    []string // what runs it: mote's path and "kubectl", possibly behind a program that runs mote
	Kubeconfig string
	Namespace  string // empty for the kubeconfig's
}

// Command is kubectl with these arguments, not yet started.
func (k Kubectl) Command(ctx context.Context, args ...string) *exec.Cmd {
	all := append(k.Program[1:len(k.Program):len(k.Program)], "--kubeconfig", k.Kubeconfig)
	if k.Namespace != "" {
		all = append(all, "-n", k.Namespace)
	}
	return exec.CommandContext(ctx, k.Program[0], append(all, args...)...)
}

// Try runs kubectl, for three minutes at most, and returns what it wrote to its standard output. An
// error has both outputs' ends in it.
func (k Kubectl) Try(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := k.Command(ctx, args...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(),
			fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, End(out.String()), End(errOut.String()))
	}
	return out.String(), nil
}

// Run is Try of what must succeed.
func (k Kubectl) Run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := k.Try(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Apply applies a manifest given as text.
func (k Kubectl) Apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := k.Try(t.Context(), manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// End keeps a failure readable: what a program said last matters most.
func End(s string) string { return s[max(0, len(s)-1000):] }
