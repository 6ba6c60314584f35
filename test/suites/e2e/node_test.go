package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

// testImages imports, lists, removes, and wants nothing half-imported.
func testImages(t *testing.T, c *cluster) {
	list := func() string { return runMote(t, "image", "list", "--data-dir", c.dataDir) }
	for _, want := range []string{"docker.io/library/busybox:1.36", "docker.io/library/busybox:latest",
		"example.com/shop:1.0"} {
		if out := list(); !strings.Contains(out, want) {
			t.Errorf("image list lacks %s:\n%s", want, out)
		}
	}
	// The node tells the scheduler what it has.
	harness.Eventually(t, 60*time.Second, "image in the node's status", func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, image := range node.Status.Images {
			for _, name := range image.Names {
				if name == "example.com/shop:1.0" {
					return nil
				}
			}
		}
		return fmt.Errorf("not among %d", len(node.Status.Images))
	})
	good := readFile(t, filepath.Join(options.Images, "operator.tar"))
	for _, row := range []struct{ name, content string }{
		{"not an archive", "this is text, not a tar archive\n"},
		{"cut short", good[:len(good)/2]},
		{"empty", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := list()
			file := filepath.Join(t.TempDir(), "bad.tar")
			if err := os.WriteFile(file, []byte(row.content), 0o644); err != nil {
				t.Fatal(err)
			}
			said := refusedByMote(t, "image", "import", "--data-dir", c.dataDir, file)
			if !strings.Contains(said, "bad.tar") {
				t.Errorf("said %q, want the file's name in it", said)
			}
			if after := list(); after != before {
				t.Errorf("images before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	runMote(t, "image", "rm", "--data-dir", c.dataDir, "docker.io/library/busybox:latest")
	if out := list(); strings.Contains(out, "busybox:latest") || !strings.Contains(out, "busybox:1.36") {
		t.Errorf("after removing one of two names:\n%s", out)
	}
	if out := runMote(t, "ctr", "--address", filepath.Join(c.dataDir, "agent/containerd/containerd.sock"), "-n",
		"k8s.io", "containers", "list", "-q"); strings.TrimSpace(out) == "" {
		t.Error("mote ctr lists no containers")
	}
}

// refusedByMote runs a command that must end with code 1, at once and with one line, which it
// returns.
func refusedByMote(t *testing.T, args ...string) string {
	t.Helper()
	return refusedIn(t, nil, args...)
}

func refusedIn(t *testing.T, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, options.Mote, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	said := harness.End(strings.TrimSpace(string(out)))
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("mote %s: %v, want exit code 1:\n%s", strings.Join(args, " "), err, said)
	}
	if said == "" || strings.Contains(said, "\n") {
		t.Errorf("mote %s: said, instead of one line:\n%s", strings.Join(args, " "), said)
	}
	return said
}

// testSecondInstance runs a control plane of its own beside the first.
func testSecondInstance(t *testing.T, c *cluster) {
	second := newCluster(t, "second", 6543, "--disable-agent")
	begin := time.Now()
	second.launch(t)
	api := second.apiWithin(t, begin, 90*time.Second)
	t.Logf("API of the second server ready after %v", api.Round(time.Millisecond))
	second.kubectl(t, "create", "configmap", "only-here")
	if _, err := c.try(t.Context(), "", "get", "configmap", "only-here"); err == nil {
		t.Error("the first cluster sees the second one's objects")
	}
	if out := second.kubectl(t, "get", "nodes", "-o", "name"); out != "" {
		t.Errorf("a server without agent has nodes: %q", out)
	}
	second.Stop(t)
	said := refusedByMote(t, "server", "--data-dir", c.dataDir, "--kubeconfig-output", second.kubeconfig,
		"--https-listen-port", "6644", "--node-name", "thief")
	if !strings.Contains(said, c.dataDir) {
		t.Errorf("a second server on the same folder was told %q", said)
	}
}

// testDrain empties the node as before maintenance and takes it back.
func testDrain(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: movable}
spec:
  replicas: 2
  selector: {matchLabels: {app: movable}}
  template:
    metadata: {labels: {app: movable}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: ` + busyboxImage + `, command: [sleep, "3600"]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: movable}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: movable}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: fixed}
spec:
  selector: {matchLabels: {app: fixed}}
  template:
    metadata: {labels: {app: fixed}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: ` + busyboxImage + `, command: [sleep, "3600"]}
`)
	s.rollout("deployment/movable")
	s.rollout("daemonset/fixed")
	old := s.pods("app=movable")
	// The budget lets one go at a time, and with nowhere else to run the second must stay: the
	// drain cannot end.
	out, err := c.try(t.Context(), "", "drain", c.node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
		"--timeout=15s", "--pod-selector=app=movable")
	if err == nil || !strings.Contains(err.Error()+out, "disruption budget") {
		t.Errorf("drain against the budget: %v %s", err, out)
	}
	if n := len(s.pods("app=movable")); n == 0 {
		t.Error("the disruption budget was not kept")
	}
	s.kubectl("delete", "pdb", "movable")
	c.kubectl(t, "drain", c.node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s",
		"--pod-selector=app=movable")
	for _, p := range s.pods("app=movable") {
		if p.Spec.NodeName != "" {
			t.Errorf("pod %s is on the drained node", p.Name)
		}
	}
	if len(s.pods("app=fixed")) != 1 {
		t.Error("the DaemonSet's pod was drained")
	}
	if out := c.kubectl(t, "get", "node", c.node); !strings.Contains(out, "SchedulingDisabled") {
		t.Errorf("node: %s", out)
	}
	c.kubectl(t, "uncordon", c.node)
	s.rollout("deployment/movable")
	for _, p := range s.pods("app=movable") {
		for _, o := range old {
			if p.UID == o.UID {
				t.Errorf("pod %s was not evicted", p.Name)
			}
		}
	}
}
