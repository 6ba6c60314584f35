package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
)

// testHelm takes a chart through its life.
func testHelm(t *testing.T, c *cluster) {
	if options.helm == "" {
		t.Fatal("no helm to test with; pass -helm, as scripts/e2e does")
	}
	s := c.namespace(t)
	home := t.TempDir()
	try := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, options.helm,
			append([]string{"--kubeconfig", c.kubeconfig, "-n", s.name}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	helm := func(args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	motd := func(want string) {
		t.Helper()
		url := "http://" + s.clusterIP("front") + "/"
		harness.Eventually(t, 20*time.Second, "chart's service answers", func(ctx context.Context) error {
			_, body, err := fetch(ctx, http.MethodGet, url, "")
			if err != nil {
				return err
			}
			if !strings.Contains(body, want) {
				return fmt.Errorf("answered %q, want %q in it", body, want)
			}
			return nil
		})
	}
	helm("install", "front", "chart", "--wait", "--timeout=170s")
	motd("first")
	helm("upgrade", "front", "chart", "--set", "motd=second,replicas=2", "--wait", "--timeout=170s")
	motd("second")
	if n := len(s.pods("app=front")); n < 2 {
		t.Errorf("%d pods after the upgrade, want 2", n)
	}
	if out := s.kubectl("get", "job", "front-check", "-o", "jsonpath={.status.succeeded}"); out != "1" {
		t.Errorf("the upgrade's hook: %q", out)
	}
	helm("rollback", "front", "1", "--wait", "--timeout=170s")
	motd("first")
	if out := helm("history", "front"); strings.Count(out, "\n") != 4 {
		t.Errorf("history: %s", out)
	}
	if out, err := try("install", "front", "chart"); err == nil {
		t.Errorf("a second release of the same name was accepted: %s", out)
	}
	helm("uninstall", "front", "--wait", "--timeout=170s")
	// Hooks are not part of a release; Helm leaves them to their policy, which here keeps the last.
	s.kubectl("delete", "job", "front-check")
	harness.Eventually(t, 30*time.Second, "nothing of the chart left", func(ctx context.Context) error {
		out, err := s.try(ctx, "", "get", "deployments,services,pods,configmaps,secrets", "-o", "name",
			"--field-selector=metadata.name!=kube-root-ca.crt")
		if err != nil {
			return err
		}
		if out != "" {
			return fmt.Errorf("left: %s", out)
		}
		return nil
	})
}
