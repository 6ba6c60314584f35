package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

const (
	mainIP, movedIP, nearIP, farIP, strayIP = "192.168.77.11", "192.168.77.21", "192.168.77.12", "192.168.77.13",
		"192.168.77.14"
	// mainName is how the machine behind the NAT knows the server: multicast does not get there, so
	// after a move only a name leads on.
	mainName = "mote.example.test"
	// space is the namespace of the test's pods.
	space = "span"
)

// step is a part of a test that goes on where the one before it ended.
type step[C any] struct {
	name string
	run  func(*testing.T, C)
}

// inOrder runs steps on c and tells how long each took. None is run after one that failed.
func inOrder[C any](t *testing.T, c C, steps []step[C]) {
	t.Helper()
	for _, s := range steps {
		begin := time.Now()
		ok := t.Run(s.name, func(t *testing.T) { s.run(t, c) })
		t.Logf("%s took %v", s.name, time.Since(begin).Round(100*time.Millisecond))
		if !ok {
			t.Fatalf("what follows would say nothing of its own; see the logs in %s", options.Artifacts)
		}
	}
}

// cluster is a server, an agent on the same network, and one behind a NAT; and what is needed to
// talk to them from beside them.
type cluster struct {
	main, near, far *machine
	kubeconfig      string // the sandbox's copy
	client          *kubernetes.Clientset
	names           *exec.Cmd // the network's name server
}

// machines are those there are: not all tests make three.
func (c *cluster) machines() []*machine {
	return slices.DeleteFunc([]*machine{c.main, c.near, c.far}, func(m *machine) bool { return m == nil })
}

// takeKubeconfig fetches what the server wrote and makes it lead to the server's address on the
// network.
func (c *cluster) takeKubeconfig(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 2*time.Minute, "kubeconfig", func(context.Context) error {
		if err := c.main.Alive(); err != nil {
			return err
		}
		config, err := clientcmd.LoadFromFile(c.main.Path(c.kubeconfig))
		if err != nil {
			return err
		}
		for _, k := range config.Clusters {
			k.Server = "https://" + net.JoinHostPort(c.main.Address(), "6443")
		}
		if err := clientcmd.WriteToFile(*config, c.kubeconfig); err != nil {
			return err
		}
		rest, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
		if err != nil {
			return err
		}
		rest.QPS, rest.Burst, rest.Timeout = 200, 400, 10*time.Second
		c.client, err = kubernetes.NewForConfig(rest)
		return err
	})
}

// readyWithin waits for the machine's node to be Ready, and to have said so later than begin: what
// was written before does not count. It gives the time that took. That pods may come again is
// waited for too and not counted: the taint of a node that was not Ready when its controller looked
// goes when it looks again, every five seconds.
func (c *cluster) readyWithin(t *testing.T, m *machine, begin time.Time, within time.Duration) time.Duration {
	t.Helper()
	var took time.Duration
	harness.Eventually(t, within-time.Since(begin), "node "+m.Name()+" ready", func(ctx context.Context) error {
		if err := m.Alive(); err != nil {
			return err
		}
		node, err := c.client.CoreV1().Nodes().Get(ctx, m.Name(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := harness.NodeReady(node); err != nil {
			return err
		}
		if err := c.heardSince(ctx, node, begin); err != nil {
			return err
		}
		if took == 0 {
			took = time.Since(begin)
		}
		for _, taint := range node.Spec.Taints {
			if strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
				return fmt.Errorf("it is tainted %s", taint.Key)
			}
		}
		return nil
	})
	return took
}

// heardSince is an error unless a node is new, or its lease was renewed. Other times of a node are
// of whole seconds.
func (c *cluster) heardSince(ctx context.Context, node *corev1.Node, begin time.Time) error {
	if node.CreationTimestamp.After(begin.Add(-time.Second)) {
		return nil
	}
	lease, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node.Name, metav1.GetOptions{})
	if err == nil && (lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(begin)) {
		err = errors.New("it has not been heard of since")
	}
	return err
}

// kube is kubectl from beside the machines.
func (c *cluster) kube() harness.Kubectl {
	return harness.Kubectl{Program: []string{options.Mote, "kubectl"}, Kubeconfig: c.kubeconfig, Namespace: space}
}

func (c *cluster) try(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.kube().Try(ctx, stdin, args...)
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.kube().Run(t, args...)
}

func (c *cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	c.kube().Apply(t, manifest)
}

// pods are all of the test's, or those of one app.
func (c *cluster) pods(ctx context.Context, selector string) ([]corev1.Pod, error) {
	list, err := c.client.CoreV1().Pods(space).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// podOn is the one pod of an app on a machine.
func (c *cluster) podOn(t *testing.T, m *machine, app string) corev1.Pod {
	t.Helper()
	p, err := c.findPod(t.Context(), m, app)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *cluster) findPod(ctx context.Context, m *machine, app string) (corev1.Pod, error) {
	pods, err := c.pods(ctx, "app="+app)
	if err != nil {
		return corev1.Pod{}, err
	}
	pods = slices.DeleteFunc(pods,
		func(p corev1.Pod) bool { return p.Spec.NodeName != m.Name() || p.DeletionTimestamp != nil })
	if len(pods) != 1 {
		return corev1.Pod{}, fmt.Errorf("%d pods of %s on %s, want one", len(pods), app, m.Name())
	}
	return pods[0], nil
}

// containers maps each container of the test's pods, and the uid of the pod, to its id and number
// of restarts.
func (c *cluster) containers(t *testing.T) map[string]string {
	t.Helper()
	pods, err := c.pods(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, p := range pods {
		for _, s := range p.Status.ContainerStatuses {
			ids[fmt.Sprintf("%s (%s) on %s", p.Name, p.UID, p.Spec.NodeName)] = fmt.Sprintf("%s after %d restarts",
				s.ContainerID, s.RestartCount)
		}
	}
	return ids
}

// allReady waits until every pod of the test is, and none is left that is to go.
func (c *cluster) allReady(t *testing.T, within time.Duration) {
	t.Helper()
	harness.Eventually(t, within, "pods ready", func(ctx context.Context) error {
		pods, err := c.pods(ctx, "")
		if err != nil {
			return err
		}
		if want := 2*3 + 3; len(pods) != want {
			return fmt.Errorf("%d pods, want %d", len(pods), want)
		}
		for _, p := range pods {
			if err := harness.PodReady(&p); err != nil {
				return fmt.Errorf("on %s: %w", p.Spec.NodeName, err)
			}
			if p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s on %s is to go since %v", p.Name, p.Spec.NodeName, p.DeletionTimestamp)
			}
		}
		return nil
	})
}

// explain keeps what helps to understand a failure.
func (c *cluster) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	name := filepath.Join(options.Artifacts, strings.ReplaceAll(t.Name(), "/", "_")+".txt")
	var all strings.Builder
	for _, args := range [][]string{{"get", "nodes", "-o", "wide"}, {"get", "all,endpointslices", "-o", "wide"},
		{"describe", "nodes"}, {"describe", "pods"}, {"events"}} {
		out, err := c.try(ctx, "", args...)
		fmt.Fprintf(&all, "--- kubectl %s (%v)\n%s\n", strings.Join(args, " "), err, out)
	}
	for _, m := range c.machines() {
		for _, command := range []string{"ip addr", "ip route", "bridge fdb show", "ip neigh", "nft list ruleset"} {
			out, err := m.Command(ctx, "sh", "-c", command).CombinedOutput()
			fmt.Fprintf(&all, "--- %s: %s (%v)\n%s\n", m.Name(), command, err, out)
		}
	}
	if err := os.WriteFile(name, []byte(all.String()), 0o644); err != nil {
		t.Log(err)
	}
	t.Logf("see %s and the logs beside it", name)
}

// tellName starts the network's name server, or starts it anew with another address.
func (c *cluster) tellName(t *testing.T, address string) {
	t.Helper()
	c.forgetName()
	c.names = exec.Command("ip", "netns", "exec", sandbox.OutsideNetns, options.podtool, "dns", sandbox.OutsideIP+":53",
		mainName, address)
	if err := c.names.Start(); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) forgetName() {
	if c.names != nil {
		_ = c.names.Process.Kill()
		_ = c.names.Wait()
	}
}
