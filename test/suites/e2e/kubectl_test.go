package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

// kube is `mote kubectl` against the cluster.
func (c *cluster) kube() harness.Kubectl {
	return harness.Kubectl{Program: []string{options.Mote, "kubectl"}, Kubeconfig: c.kubeconfig}
}

func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	return c.kube().Command(ctx, args...)
}

func (c *cluster) try(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.kube().Try(ctx, stdin, args...)
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.kube().Run(t, args...)
}

// space is a namespace made for one test.
type space struct {
	*cluster
	t    *testing.T
	name string
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// namespace makes one named for the test. What it holds is written to the artifacts if the test
// fails, then deleted.
func (c *cluster) namespace(t *testing.T) *space {
	t.Helper()
	last := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
	return c.namespaceNamed(t, strings.Trim(notInNames.ReplaceAllString(strings.ToLower(last), "-"), "-"))
}

func (c *cluster) namespaceNamed(t *testing.T, name string) *space {
	t.Helper()
	s := &space{cluster: c, t: t, name: name}
	c.kubectl(t, "create", "namespace", name)
	s.collectAtEnd()
	return s
}

// collectAtEnd leaves the namespace as it is when the server is not there to be asked, or the test
// asked for it with keep.
func (s *space) collectAtEnd() {
	s.t.Cleanup(func() {
		if !s.Running() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		if s.t.Failed() {
			s.explain(ctx)
		}
		if _, err := s.try(ctx, "", "delete", "namespace", s.name, "--wait=false", "--ignore-not-found"); err != nil {
			s.t.Errorf("delete namespace: %v", err)
		}
	})
}

// explain writes what helps to understand a failure in this namespace.
func (s *space) explain(ctx context.Context) {
	dir := filepath.Join(options.Artifacts, strings.ReplaceAll(s.t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Log(err)
		return
	}
	save := func(name string, args ...string) {
		out, err := s.try(ctx, "", args...)
		if err != nil {
			out += "\n" + err.Error() + "\n"
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644); err != nil {
			s.t.Log(err)
		}
	}
	for name, args := range map[string][]string{
		"objects.txt":  {"get", "all,endpointslices,configmaps,networkpolicies", "-o", "wide"},
		"pods.txt":     {"describe", "pods"},
		"events.txt":   {"events"},
		"nodes.txt":    {"describe", "nodes"},
		"all-pods.txt": {"get", "pods", "-A", "-o", "wide"},
	} {
		save(name, args...)
	}
	pods, err := s.try(ctx, "", "get", "pods", "-o", "name")
	if err != nil {
		s.t.Log(err)
	}
	for _, pod := range strings.Fields(pods) {
		save("log-"+filepath.Base(pod)+".txt", "logs", pod, "--all-containers", "--prefix", "--ignore-errors",
			"--tail=200")
	}
	s.t.Logf("see %s and %s", dir, s.LogName())
}

// kube is that in the test's namespace.
func (s *space) kube() harness.Kubectl {
	k := s.cluster.kube()
	k.Namespace = s.name
	return k
}

func (s *space) kubectl(args ...string) string {
	s.t.Helper()
	return s.kube().Run(s.t, args...)
}

func (s *space) try(ctx context.Context, stdin string, args ...string) (string, error) {
	return s.kube().Try(ctx, stdin, args...)
}

func (s *space) apply(manifest string) {
	s.t.Helper()
	s.kube().Apply(s.t, manifest)
}

// refused applies a manifest that must be rejected, and returns what was said.
func (s *space) refused(manifest string, args ...string) string {
	s.t.Helper()
	if len(args) == 0 {
		args = []string{"apply", "-f", "-"}
	}
	_, err := s.try(s.t.Context(), manifest, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		s.t.Fatalf("kubectl %v was not refused (%v):\n%s", args, err, manifest)
	}
	return err.Error()
}

// exec runs a program in a pod and returns its output.
func (s *space) exec(pod string, args ...string) string {
	s.t.Helper()
	return s.kubectl(append([]string{"exec", pod, "--"}, args...)...)
}

func (s *space) pod(name string) *corev1.Pod {
	s.t.Helper()
	p, err := s.client.CoreV1().Pods(s.name).Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// pods lists those with a label.
func (s *space) pods(selector string) []corev1.Pod {
	s.t.Helper()
	l, err := s.client.CoreV1().Pods(s.name).List(s.t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.t.Fatal(err)
	}
	return l.Items
}

// ready waits for a pod to be Ready.
func (s *space) ready(name string) *corev1.Pod {
	s.t.Helper()
	return s.podUntil(name, 180*time.Second, "ready", harness.PodReady)
}

func (s *space) podUntil(name string, within time.Duration, what string, check func(*corev1.Pod) error) *corev1.Pod {
	s.t.Helper()
	var p *corev1.Pod
	harness.Eventually(s.t, within, "pod "+name+" "+what, func(ctx context.Context) error {
		var err error
		if p, err = s.client.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		return check(p)
	})
	return p
}

func (s *space) rollout(resource string) {
	s.t.Helper()
	s.kubectl("rollout", "status", resource, "--timeout=120s")
}
