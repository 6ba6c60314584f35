package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// TestCluster joins three machines and takes them through what happens to machines. The order
// matters: each test leaves a working cluster to the next.
func TestCluster(t *testing.T) {
	options.NeedMote(t)
	c := &cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig.yaml")}
	t.Cleanup(c.forgetName)
	c.tellName(t, mainIP)
	c.main = newMachine(t, sandbox.HostConfig{Name: "main", Address: mainIP})
	c.near = newMachine(t, sandbox.HostConfig{Name: "near", Address: nearIP})
	c.far = newMachine(t, sandbox.HostConfig{Name: "far", Address: farIP, NAT: true})

	steps := []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"Join", testJoin},
		{"Refused", testRefused},
		{"Network", testNetwork},
		{"Tunnel", testTunnel},
		{"AgentStopped", testAgentStopped},
		{"Partition", testPartition},
		{"ServerDown", testServerDown},
		{"NodeLost", testNodeLost},
		{"JoinAgain", testJoinAgain},
	}
	for i, s := range steps {
		begin := time.Now()
		ok := t.Run(s.name, func(t *testing.T) {
			defer func() {
				if t.Failed() && i > 0 {
					c.explain(t)
				}
			}()
			s.run(t, c)
		})
		t.Logf("%s took %v", s.name, time.Since(begin).Round(100*time.Millisecond))
		if !ok {
			t.Fatalf("what follows would say nothing of its own")
		}
	}
}

// joinWithin is the promise.
const joinWithin = 10 * time.Second

// echoManifest has on every machine a pod that answers with its name and the client's address.
const echoManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: example.com/podtool:1
        args: [serve, ":8080"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

// manifest has on every machine a pod that answers with its name and the client's address, and one
// that sleeps; and some that may run anywhere.
const manifest = `
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30090}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30091}]
---
` + echoManifest + `---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: talk}
spec:
  selector: {matchLabels: {app: talk}}
  template:
    metadata: {labels: {app: talk}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: docker.io/library/busybox:1.36
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "trap exit TERM; echo here is $NODE; sleep 100000 & wait"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: anywhere}
spec:
  replicas: 3
  selector: {matchLabels: {app: anywhere}}
  template:
    metadata: {labels: {app: anywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: anywhere}}}
      containers:
      - name: main
        image: docker.io/library/busybox:1.36
        imagePullPolicy: IfNotPresent
        command: [sleep, "200000"]
`

// testJoin makes a cluster of three machines, one after the other, as a user does, and fills it.
func testJoin(t *testing.T, c *cluster) {
	begin := time.Now()
	c.main.launch(t, "server", "--kubeconfig-output", c.kubeconfig)
	c.takeKubeconfig(t)
	t.Logf("server ready after %v", c.readyWithin(t, c.main, begin, 60*time.Second).Round(time.Millisecond))

	said := c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--ttl", "10m")
	fields := strings.Fields(said)
	if !strings.Contains(said, "mote agent --server https://"+mainIP+":6443 --token M10") || len(fields) < 6 {
		t.Fatalf("mote token create says %q, not how to join", said)
	}
	// The command as it was printed, with no more than where this machine keeps its data.
	c.near.join(t, c, "--server", "https://"+mainIP+":6443", "--token-file",
		c.near.write(t, "token", fields[len(fields)-1]), "--node-label", "example.com/place=near")

	own, err := readFile(c.main.Path(filepath.Join(dataDir(), "server/token")))
	if err != nil {
		t.Fatal(err)
	}
	c.far.join(t, c, "--server", "https://"+mainName+":6443", "--token-file", c.far.write(t, "token", own),
		"--node-external-ip", farIP,
		"--node-label", "example.com/place=far", "--node-taint", "example.com/slow=yes:PreferNoSchedule")

	for _, m := range c.machines() {
		m.importImages(t)
	}
	for m, want := range map[*machine]struct {
		place  string
		taints []corev1.Taint
	}{
		c.near: {"near", nil},
		c.far: {"far", []corev1.Taint{{Key: "example.com/slow", Value: "yes",
			Effect: corev1.TaintEffectPreferNoSchedule}}},
	} {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), m.Name(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := node.Labels["example.com/place"]; got != want.place {
			t.Errorf("node %s has label place=%q, want %q", m.Name(), got, want.place)
		}
		if got := fmt.Sprint(node.Spec.Taints); got != fmt.Sprint(want.taints) {
			t.Errorf("node %s has taints %s, want %v", m.Name(), got, want.taints)
		}
		if a := node.Status.Addresses[0]; a.Type != corev1.NodeInternalIP || a.Address != m.Address() {
			t.Errorf("node %s has address %v, want %s", m.Name(), a, m.Address())
		}
	}
	c.lookWell(t)
	c.kubectl(t, "create", "namespace", space)
	c.apply(t, manifest)
	c.allReady(t, 60*time.Second)
}

// lookWell looks at a new cluster as its user does first: every machine's `mote status`, the nodes'
// roles and runtimes, and the components.
func (c *cluster) lookWell(t *testing.T) {
	t.Helper()
	for m, wants := range map[*machine][]string{
		c.near: {"node        near, ready", "server      https://" + mainIP + ":6443", "tunnel      open"},
		c.far:  {"node        far, ready", "tunnel      open"},
		c.main: {"API server  ready"},
	} {
		harness.Eventually(t, 10*time.Second, "mote status of "+m.Name(), func(ctx context.Context) error {
			out, err := m.Command(ctx, options.Mote, "status", "--data-dir", dataDir()).CombinedOutput()
			for _, want := range wants {
				if !strings.Contains(string(out), want) {
					err = errors.Join(err, fmt.Errorf("it lacks %q", want))
				}
			}
			if err != nil {
				return fmt.Errorf("%w:\n%s", err, out)
			}
			return nil
		})
	}
	nodes := c.kubectl(t, "get", "nodes", "-o", "wide", "--no-headers")
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		role := map[bool]string{true: "control-plane", false: "<none>"}[fields[0] == c.main.Name()]
		if fields[2] != role || strings.Contains(line, "unknown") {
			t.Errorf("kubectl get nodes shows %q, want role %s and the runtime's version", line, role)
		}
	}
	if said := c.kubectl(t, "get", "componentstatuses"); strings.Count(said, "Healthy") != 3 {
		t.Errorf("the components are not well:\n%s", said)
	}
}

// join starts an agent that has never joined, and holds it to the promise.
func (m *machine) join(t *testing.T, c *cluster, args ...string) {
	t.Helper()
	begin := time.Now()
	m.launch(t, append([]string{"agent"}, args...)...)
	took := c.readyWithin(t, m, begin, 60*time.Second)
	harness.Promised(t, m.Name()+" joined and was Ready", took, joinWithin)
}

// testRefused starts agents that must not join; each says why in one line.
func testRefused(t *testing.T, c *cluster) {
	stray := newMachine(t, sandbox.HostConfig{Name: "stray", Address: strayIP})
	web := stray.Command(context.Background(), options.podtool, "serve", strayIP+":8081")
	if err := web.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = web.Process.Kill()
		_ = web.Wait()
	}()
	good := strings.TrimSpace(c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--quiet", "--ttl",
		"10m"))
	pin, secret, ok := strings.Cut(good, "::")
	if !ok || len(secret) != 23 {
		t.Fatalf("token %q is not of the form M10…::id.secret", good)
	}
	wrong := good[:len(good)-2] + "zz"
	if wrong == good {
		wrong = good[:len(good)-2] + "yy"
	}
	otherPin := "M100" + pin[4:]
	if otherPin == pin {
		otherPin = "M101" + pin[4:]
	}
	server := "https://" + mainIP + ":6443"
	for _, row := range []struct {
		name, server, token string
		args                []string
		want                []string
	}{
		{"wrong token", server, pin + "::abcdef.0123456789abcdef", nil, []string{"token", "mote token create"}},
		{"wrong secret", server, wrong, nil, []string{"token", "mote token create"}},
		{"half a token", server, good[:len(good)/2], nil, []string{"token has the wrong form"}},
		{"end cut off", server, good[:len(good)-5], nil, []string{"token has the wrong form", "paste the whole"}},
		{"wrong pin", server, otherPin + "::" + secret, nil, []string{"wrong server"}},
		{"plain HTTP", "https://" + strayIP + ":8081", good, nil, []string{"no mote server answers there"}},
		{"wrong port", "https://" + mainIP + ":10250", good, nil, []string{mainIP + ":10250"}},
		{"not https", "http://" + mainIP + ":6443", good, nil, []string{"https://"}},
		{"name of another", server, good, []string{"--node-name", "far"}, []string{"far", "mote node forget"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			said := stray.refused(t,
				append([]string{"agent", "--data-dir", dataDir(), "--server", row.server, "--token-file",
					stray.write(t, "token", row.token)}, row.args...)...)
			t.Log(said)
			for _, want := range row.want {
				if !strings.Contains(said, want) {
					t.Errorf("said %q, want %q in it", said, want)
				}
			}
			if strings.Contains(said, secret) || strings.Contains(said, row.token) {
				t.Errorf("said %q, which has the token in it", said)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		// The one case where waiting can help: it says so once, and joins when somebody is.
		begin := time.Now()
		stray.launch(t, "agent", "--server", "https://192.168.77.99:6443,https://"+strayIP+":6443", "--token-file",
			stray.write(t, "token", good))
		harness.Eventually(t, 20*time.Second, "the reason is told", func(context.Context) error {
			if err := stray.Alive(); err != nil {
				return err
			}
			if !strings.Contains(stray.Tail(50), "server cannot be reached") {
				return errors.New(stray.Tail(5))
			}
			return nil
		})
		t.Logf("told after %v: %s", time.Since(begin).Round(time.Millisecond), stray.Tail(1))
		stray.Stop(t)
	})
	nodes, err := c.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 3 {
		t.Errorf("%d nodes are there (%v), want 3", len(nodes.Items), err)
	}
}

// fetch gets a page from beside the machines.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s, %w", url, resp.Status, err)
	}
	return strings.TrimSpace(string(body)), nil
}
