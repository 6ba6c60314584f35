package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

// testServiceAccount calls the API from inside a pod with the token and CA every pod gets.
func testServiceAccount(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader}]
---
apiVersion: v1
kind: Pod
metadata: {name: caller}
spec:
  serviceAccountName: reader
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "example.com/podtool:1", args: [serve, ":8080"]}
---
apiVersion: v1
kind: Pod
metadata: {name: tokenless}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "example.com/podtool:1", args: [serve, ":8080"]}
`)
	s.ready("caller")
	s.ready("tokenless")
	for _, row := range []struct{ method, path, code, body string }{
		{"GET", "/api/v1/namespaces/" + s.name + "/pods", "200", `"caller"`},
		{"GET", "/version", "200", "v1.37.2"},
		{"GET", "/api/v1/namespaces/" + s.name + "/secrets", "403", "system:serviceaccount:" + s.name + ":reader"},
		{"DELETE", "/api/v1/namespaces/" + s.name + "/pods/tokenless", "403", "cannot delete"},
		{"GET", "/api/v1/namespaces/kube-system/pods", "403", "cannot list"},
	} {
		out := s.exec("caller", "podtool", "api", row.method, row.path)
		if !strings.HasPrefix(out, row.code+"\n") || !strings.Contains(out, row.body) {
			t.Errorf("%s %s: %.300q, want %s and %q", row.method, row.path, out, row.code, row.body)
		}
	}
	if _, err := s.try(t.Context(), "", "exec", "tokenless", "--", "ls", "/var/run/secrets/kubernetes.io"); err == nil {
		t.Error("a token was mounted although the pod wanted none")
	}
	token := strings.TrimSpace(s.kubectl("create", "token", "reader", "--duration=10m"))
	out, err := s.try(t.Context(), "", "--token="+token, "--kubeconfig=/dev/null", "--server="+c.config.Host,
		"--insecure-skip-tls-verify", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
	if err != nil || out != "system:serviceaccount:"+s.name+":reader" {
		t.Errorf("with a token made by kubectl: %q, %v", out, err)
	}
}

// testRBAC asks what others than the administrator may do.
func testRBAC(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: editors}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: erika}]
`)
	may := func(want bool, args ...string) {
		t.Helper()
		out, _ := s.try(t.Context(), "", append([]string{"auth", "can-i"}, args...)...)
		if got := strings.HasPrefix(out, "yes"); got != want {
			t.Errorf("auth can-i %s: %q", strings.Join(args, " "), out)
		}
	}
	// The aggregation of roles runs in a controller; edit is empty until it has.
	harness.Eventually(t, 20*time.Second, "roles aggregated", func(ctx context.Context) error {
		out, err := s.try(ctx, "", "auth", "can-i", "create", "deployments", "--as=erika")
		if err == nil && strings.HasPrefix(out, "yes") {
			return nil
		}
		return fmt.Errorf("%q, %w", out, err)
	})
	may(false, "create", "deployments", "--as=erika", "-n", "default")
	may(false, "create", "rolebindings", "--as=erika")
	may(false, "get", "nodes", "--as=erika")
	may(false, "get", "pods", "--as=stranger")
	may(true, "*", "*")
	if said := s.refused("", "create", "configmap", "x", "--as=stranger"); !strings.Contains(said, "forbidden") {
		t.Errorf("refused with %q", said)
	}
	// A node's identity may not touch other nodes, nor read secrets none of its pods uses.
	node := []string{"--as=system:node:elsewhere", "--as-group=system:nodes"}
	if said := s.refused("", append([]string{"label", "node", c.node, "x=y"}, node...)...); !strings.Contains(said,
		"forbidden") {
		t.Errorf("refused with %q", said)
	}
	s.kubectl("create", "secret", "generic", "hidden", "--from-literal=a=b")
	if said := s.refused("", append([]string{"get", "secret", "hidden"}, node...)...); !strings.Contains(said,
		"forbidden") {
		t.Errorf("refused with %q", said)
	}
	// Without credentials, with wrong ones.
	if said := s.refused("", "--kubeconfig=/dev/null", "--server="+c.config.Host, "--insecure-skip-tls-verify",
		"--token=wrong", "get", "pods"); !strings.Contains(strings.ToLower(said), "unauthorized") &&
		!strings.Contains(said, "logged in") {
		t.Errorf("refused with %q", said)
	}
}

// testCustomResources defines a resource and wants the server to hold it to its schema.
func testCustomResources(t *testing.T, c *cluster) {
	s := c.namespace(t)
	defineGreetings(t, c)
	greeting := func(spec string) string {
		return "apiVersion: e2e.example.com/v1\nkind: Greeting\nmetadata: {name: hello}\nspec: " + spec + "\n"
	}
	for _, row := range []struct{ name, spec, said string }{
		{"missing field", "{}", "spec.name: Required value"},
		{"rule", "{name: nobody}", "nobody cannot be greeted"},
		{"enum", "{name: x, volume: deafening}", "Unsupported value"},
		{"type", "{name: 3}", "must be of type string"},
		{"set", "{name: x, languages: [en, en]}", "Duplicate value"},
		{"unknown field", "{name: x, colour: red}", "unknown field"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := &space{cluster: c, t: t, name: s.name}
			if said := s.refused(greeting(row.spec)); !strings.Contains(said, row.said) {
				t.Errorf("refused with %q, want %q", said, row.said)
			}
		})
	}
	s.apply(greeting("{name: world, fixed: true}"))
	if out := s.kubectl("get", "gr", "hello", "-o", "jsonpath={.spec.volume}"); out != "soft" {
		t.Errorf("default is %q", out)
	}
	if said := s.refused(greeting("{name: moon, fixed: true}")); !strings.Contains(said, "a fixed name cannot change") {
		t.Errorf("transition rule: %q", said)
	}
	// The status is written through its own door only, and does not count as a new generation.
	s.kubectl("patch", "greeting", "hello", "--type=merge", "-p", `{"status":{"text":"through the front"}}`)
	s.kubectl("patch", "greeting", "hello", "--type=merge", "--subresource=status", "-p",
		`{"status":{"text":"Hi"},"spec":{"volume":"loud"}}`)
	if out := s.kubectl("get", "greeting", "hello", "-o",
		"jsonpath={.status.text} {.spec.volume} {.metadata.generation}"); out != "Hi soft 1" {
		t.Errorf("after writes to object and status: %q", out)
	}
	if out := s.kubectl("get", "greetings"); !strings.Contains(out, "TEXT") || !strings.Contains(out, "Hi") {
		t.Errorf("printed columns: %q", out)
	}
	if out := s.kubectl("explain", "greeting.spec.volume"); !strings.Contains(out, "soft") {
		t.Errorf("kubectl explain: %q", out)
	}
}

// defineGreetings is safe to be called by several tests at once.
func defineGreetings(t *testing.T, c *cluster) {
	t.Helper()
	c.kubectl(t, "apply", "--server-side", "-f", filepath.Join("testdata", "greetings.yaml"))
	c.kubectl(t, "wait", "--for=condition=established", "crd/greetings.e2e.example.com", "--timeout=30s")
	harness.Eventually(t, 30*time.Second, "resource served", func(ctx context.Context) error {
		_, err := c.try(ctx, "", "get", "greetings", "-A")
		return err
	})
}

// testServerSideApply has two managers share an object, on a built-in and on a custom resource.
func testServerSideApply(t *testing.T, c *cluster) {
	s := c.namespace(t)
	defineGreetings(t, c)
	for _, row := range []struct{ name, one, two, path, both string }{
		{"ConfigMap", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {a: one}\n",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {a: two, b: two}\n",
			"{.data.a} {.data.b}", "two two"},
		{"Greeting", "apiVersion: e2e.example.com/v1\nkind: Greeting\nmetadata: {name: shared}\nspec: {name: one}\n",
			"apiVersion: e2e.example.com/v1\nkind: Greeting\nmetadata: {name: shared}\nspec: {name: two, volume: loud}\n", "{.spec.name} {.spec.volume}", "two loud"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := &space{cluster: c, t: t, name: s.name}
			apply := func(manager string, more ...string) []string {
				return append([]string{"apply", "--server-side", "--field-manager=" + manager, "-f", "-"}, more...)
			}
			if _, err := s.try(t.Context(), row.one, apply("one")...); err != nil {
				t.Fatal(err)
			}
			if said := s.refused(row.two, apply("two")...); !strings.Contains(said, "conflict") ||
				!strings.Contains(said, `"one"`) {
				t.Errorf("conflict said %q", said)
			}
			if _, err := s.try(t.Context(), row.two, apply("two", "--force-conflicts")...); err != nil {
				t.Fatal(err)
			}
			if out := s.kubectl("get", strings.ToLower(row.name), "shared", "-o",
				"jsonpath="+row.path); out != row.both {
				t.Errorf("after the forced apply: %q", out)
			}
		})
	}
}

// testOperator runs an operator in a pod: it must see, act, report, be elected again after its pod
// is lost.
func testOperator(t *testing.T, c *cluster) {
	s := c.namespace(t)
	defineGreetings(t, c)
	s.kubectl("apply", "-f", filepath.Join("testdata", "operator.yaml"))
	s.rollout("deployment/operator")
	greet := func(name string) {
		t.Helper()
		s.apply("apiVersion: e2e.example.com/v1\nkind: Greeting\nmetadata: {name: hello}\nspec: {name: " + name + "}\n")
		harness.Eventually(t, 60*time.Second, "operator greeted "+name, func(ctx context.Context) error {
			cm, err := c.client.CoreV1().ConfigMaps(s.name).Get(ctx, "hello", metav1.GetOptions{})
			if err != nil {
				return err
			}
			status, err := s.try(ctx, "", "get", "greeting", "hello", "-o", "jsonpath={.status.text}")
			if want := "Hello, " + name; err != nil || cm.Data["text"] != want || status != want {
				return fmt.Errorf("config map %q, status %q, %v", cm.Data["text"], status, err)
			}
			return nil
		})
	}
	greet("world")
	greet("moon")
	s.kubectl("delete", "configmap", "hello")
	greet("moon")
	s.kubectl("delete", "pods", "-l", "app=operator", "--wait=true", "--timeout=60s")
	s.rollout("deployment/operator")
	greet("sun")
	s.kubectl("delete", "greeting", "hello")
	harness.Eventually(t, 30*time.Second, "config map collected", func(ctx context.Context) error {
		if out, err := s.try(ctx, "", "get", "configmap", "hello", "--ignore-not-found"); err != nil || out != "" {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
}
