package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

const (
	partitioned = 60 * time.Second
	// downLong and downShort are how long the server is away.
	downLong, downShort = 5 * time.Minute, 60 * time.Second
	clusterDNS          = "10.43.0.10"
)

// testAgentStopped stops an agent as a service manager does and starts it without a flag: its pods
// must not notice.
func testAgentStopped(t *testing.T, c *cluster) {
	for _, m := range []*machine{c.near, c.far} {
		ids, pids := c.containers(t), append(m.echoes(), m.sleepers()...)
		pod := c.podOn(t, m, "echo")
		m.Stop(t)
		if now := append(m.echoes(), m.sleepers()...); !slices.Equal(now, pids) || len(pids) != 2 {
			t.Errorf("on %s, processes are %v, before %v", m.Name(), now, pids)
		}
		if got, err := c.main.inPod(t.Context(), only(t, c.main.echoes()), options.podtool, "get",
			"http://"+pod.Status.PodIP+":8080/"); err != nil || !strings.HasPrefix(got, pod.Name) {
			t.Errorf("pod on %s while its agent is away: %q, %v", m.Name(), got, err)
		}
		begin := time.Now()
		m.launch(t, "agent")
		t.Logf("%s was Ready again after %v", m.Name(),
			c.readyWithin(t, m, begin, 60*time.Second).Round(time.Millisecond))
		c.allReady(t, 30*time.Second)
		if now := c.containers(t); !maps.Equal(now, ids) {
			t.Errorf("containers are %v, before %v", now, ids)
		}
		if now := append(m.echoes(), m.sleepers()...); !slices.Equal(now, pids) {
			t.Errorf("on %s, processes are %v, before %v", m.Name(), now, pids)
		}
	}
}

// testPartition cuts both agents' machines off, long enough to be given up, and heals it: nothing
// may be lost or be there twice.
func testPartition(t *testing.T, c *cluster) {
	ids := c.containers(t)
	processes := map[*machine][]int{}
	for _, m := range c.machines() {
		processes[m] = append(m.echoes(), m.sleepers()...)
	}
	end := time.Now().Add(partitioned)
	for _, m := range []*machine{c.near, c.far} {
		if err := m.Partition(); err != nil {
			t.Fatal(err)
		}
	}
	service := c.clusterIP(t, "echo")
	t.Run("Meanwhile", func(t *testing.T) {
		for _, m := range []*machine{c.near, c.far} {
			t.Run(m.Name(), func(t *testing.T) {
				t.Parallel()
				// Of three pods behind the service two cannot be reached now. The name must be
				// answered each time.
				pid := only(t, m.echoes())
				harness.Always(t, end, "name answered on "+m.Name(),
					func(ctx context.Context) error { return m.resolves(ctx, pid, service) })
			})
		}
	})
	harness.Eventually(t, 30*time.Second, fmt.Sprintf("both nodes given up after %v", partitioned),
		func(ctx context.Context) error {
			nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			lost := 0
			for _, n := range nodes.Items {
				if slices.ContainsFunc(n.Spec.Taints,
					func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnreachable }) {
					lost++
				}
			}
			if lost != 2 {
				return fmt.Errorf("%d nodes are given up, want 2: the partition was none, or too short", lost)
			}
			return nil
		})
	begin := time.Now()
	for _, m := range []*machine{c.near, c.far} {
		if err := m.Heal(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*machine{c.near, c.far} {
		t.Logf("%s was Ready %v after the partition", m.Name(),
			c.readyWithin(t, m, begin, 60*time.Second).Round(time.Millisecond))
	}
	c.allReady(t, 30*time.Second)
	if now := c.containers(t); !maps.Equal(now, ids) {
		t.Errorf("containers are %v, before %v", now, ids)
	}
	for _, m := range c.machines() {
		if now := append(m.echoes(), m.sleepers()...); !slices.Equal(now, processes[m]) {
			t.Errorf("on %s, processes are %v, before %v", m.Name(), now, processes[m])
		}
	}
	c.connected(t)
}

// resolves asks the node's DNS, from within a pod, for the test's service.
func (m *machine) resolves(ctx context.Context, pid int, want string) error {
	out, err := m.inPod(ctx, pid, "busybox", "nslookup", "-type=a", "echo."+space+".svc.cluster.local", clusterDNS)
	if err == nil && !strings.Contains(out, "Address: "+want) {
		err = fmt.Errorf("answered %q, want %s", out, want)
	}
	return err
}

// connected wants every machine to reach every pod, and every pod to be reached through its server.
func (c *cluster) connected(t *testing.T) {
	t.Helper()
	for _, from := range c.machines() {
		pid := only(t, from.echoes())
		for _, to := range c.machines() {
			harness.Eventually(t, 45*time.Second, "from "+from.Name()+" to the pod on "+to.Name(),
				func(ctx context.Context) error {
					// A pod has another address after a power cut, which its node tells when it
					// can.
					pod, err := c.findPod(ctx, to, "echo")
					if err != nil {
						return err
					}
					got, err := from.inPod(ctx, pid, options.podtool, "get", "http://"+pod.Status.PodIP+":8080/")
					if err == nil && !strings.HasPrefix(got, pod.Name) {
						err = fmt.Errorf("answered %q", got)
					}
					return err
				})
		}
		harness.Eventually(t, 45*time.Second, "exec on "+from.Name(), func(ctx context.Context) error {
			_, err := c.try(ctx, "", "exec", c.podOn(t, from, "talk").Name, "--", "true")
			return err
		})
	}
}

// testServerDown takes the server away. What runs goes on; what dies is started again; agents start
// again, one of them after a power cut; and when the server is back under another address they find
// it.
func testServerDown(t *testing.T, c *cluster) {
	down := downShort
	if options.long {
		down = downLong
	}
	// What is younger than half a minute a node may not have kept yet, see docs/joining.md.
	harness.Eventually(t, 60*time.Second, "cluster is old enough", func(ctx context.Context) error {
		pods, err := c.pods(ctx, "")
		for _, p := range pods {
			if age := time.Since(p.CreationTimestamp.Time); age < 45*time.Second {
				return fmt.Errorf("pod %s is %v old", p.Name, age.Round(time.Second))
			}
		}
		return err
	})
	ids := c.containers(t)
	service := c.clusterIP(t, "echo")
	c.main.Stop(t)
	begin := time.Now()
	end := begin.Add(down)
	// The server's own pods go on like any other, so all three answer.
	for _, m := range c.machines() {
		if len(m.echoes()) != 1 || len(m.sleepers()) != 1 {
			t.Fatalf("on %s run %v and %v, want one each", m.Name(), m.echoes(), m.sleepers())
		}
	}
	served := func(ctx context.Context, m *machine, pid int) error {
		got, err := m.inPod(ctx, pid, options.podtool, "get", "http://"+service+"/")
		if err == nil && !strings.HasPrefix(got, "echo-") {
			err = fmt.Errorf("answered %q", got)
		}
		return err
	}
	t.Run("Meanwhile", func(t *testing.T) {
		t.Run("near", func(t *testing.T) {
			t.Parallel()
			m := c.near
			// Half of the time it is left alone but for one container, then its power fails.
			killAndAwait(t, m)
			pid := only(t, m.echoes())
			harness.Always(t, begin.Add(down/2), "service and name on near", func(ctx context.Context) error {
				return errors.Join(served(ctx, m, pid), m.resolves(ctx, pid, service))
			})
			m.reboot(t)
			if n := len(m.echoes()) + len(m.sleepers()); n != 0 {
				t.Fatalf("%d processes outlived the power cut", n)
			}
			booted := time.Now()
			m.launch(t, "agent")
			harness.Eventually(t, 60*time.Second, "pods back without a server", func(context.Context) error {
				if e, s := len(m.echoes()), len(m.sleepers()); e != 1 || s != 1 {
					return errors.Join(m.Alive(), fmt.Errorf("%d and %d processes", e, s))
				}
				return nil
			})
			t.Logf("pods were back %v after the boot", time.Since(booted).Round(time.Millisecond))
			pid = only(t, m.echoes())
			harness.Eventually(t, 30*time.Second, "service and name after the boot", func(ctx context.Context) error {
				return errors.Join(served(ctx, m, pid), m.resolves(ctx, pid, service))
			})
		})
		t.Run("far", func(t *testing.T) {
			t.Parallel()
			m := c.far
			// Its agent ends, a container meanwhile, and the agent starts again.
			echoes := m.echoes()
			m.Stop(t)
			if err := syscall.Kill(only(t, m.sleepers()), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			m.launch(t, "agent")
			harness.Eventually(t, 60*time.Second, "container started again without a server",
				func(context.Context) error {
					if len(m.sleepers()) != 1 {
						return errors.Join(m.Alive(), fmt.Errorf("processes %v", m.sleepers()))
					}
					return nil
				})
			if now := m.echoes(); !slices.Equal(now, echoes) {
				t.Errorf("processes are %v, before %v", now, echoes)
			}
			pid := only(t, m.echoes())
			harness.Always(t, end, "name on far",
				func(ctx context.Context) error { return m.resolves(ctx, pid, service) })
			harness.Eventually(t, 30*time.Second, "service on far",
				func(ctx context.Context) error { return served(ctx, m, pid) })
		})
	})
	if t.Failed() {
		t.FailNow()
	}

	// Back, but elsewhere. near finds it by multicast; far, behind its router, by the name it was
	// given.
	if err := c.main.Move(movedIP); err != nil {
		t.Fatal(err)
	}
	c.tellName(t, movedIP)
	back := time.Now()
	c.main.launch(t, "server", "--kubeconfig-output", c.kubeconfig)
	c.takeKubeconfig(t)
	for _, m := range c.machines() {
		t.Logf("%s was Ready %v after the server's start at its new address", m.Name(),
			c.readyWithin(t, m, back, 90*time.Second).Round(time.Millisecond))
	}
	c.allReady(t, 60*time.Second)
	c.connected(t)
	// No pod was replaced, and no container but those that were killed. A kubelet may tell of these
	// up to ten seconds later.
	harness.Eventually(t, 30*time.Second, "the containers there were, but for those killed",
		func(context.Context) error {
			now, errs := c.containers(t), []error(nil)
			for pod, id := range ids {
				killed := strings.HasSuffix(pod, " on near") || strings.HasPrefix(pod, "talk-") &&
					strings.HasSuffix(pod, " on far")
				switch {
				case now[pod] == "":
					errs = append(errs, fmt.Errorf("%s is gone", pod))
				case killed == (now[pod] == id):
					errs = append(errs, fmt.Errorf("%s is %s, before %s", pod, now[pod], id))
				}
			}
			if len(now) != len(ids) {
				errs = append(errs, fmt.Errorf("%d pods, before %d: %v", len(now), len(ids), now))
			}
			return errors.Join(errs...)
		})
}

// killAndAwait kills what a container runs, and wants it to be there again.
func killAndAwait(t *testing.T, m *machine) {
	t.Helper()
	old := only(t, m.sleepers())
	begin := time.Now()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "container started again", func(context.Context) error {
		if now := m.sleepers(); len(now) != 1 || now[0] == old {
			return fmt.Errorf("processes %v", now)
		}
		return nil
	})
	t.Logf("on %s, a killed container ran again after %v", m.Name(), time.Since(begin).Round(time.Millisecond))
}

const movable = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: movable}
spec:
  replicas: 1
  selector: {matchLabels: {app: movable}}
  template:
    metadata: {labels: {app: movable}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 3}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 3}
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 100, preference: {matchExpressions: [{key: example.com/place, operator: In, values: [near]}]}}
      containers:
      - name: main
        image: docker.io/library/busybox:1.36
        imagePullPolicy: IfNotPresent
        command: [sleep, "300000"]
`

// testNodeLost cuts the power of a machine that does not come back: it is given up, and what
// tolerates that for seconds only moves.
func testNodeLost(t *testing.T, c *cluster) {
	c.apply(t, movable)
	c.kubectl(t, "rollout", "status", "deployment/movable", "--timeout=60s")
	old := c.podOn(t, c.near, "movable")
	stays := c.podOn(t, c.near, "echo")
	begin := time.Now()
	if err := c.near.PowerCut(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 90*time.Second, "node given up", func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.near.Name(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, taint := range node.Spec.Taints {
			if taint.Key == corev1.TaintNodeUnreachable && taint.Effect == corev1.TaintEffectNoExecute {
				return nil
			}
		}
		return fmt.Errorf("its taints are %v", node.Spec.Taints)
	})
	t.Logf("given up after %v", time.Since(begin).Round(time.Second))
	harness.Eventually(t, 60*time.Second, "pod moved", func(ctx context.Context) error {
		pods, err := c.pods(ctx, "app=movable")
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.UID != old.UID && p.Spec.NodeName != c.near.Name() && p.Status.Phase == corev1.PodRunning {
				return nil
			}
		}
		return fmt.Errorf("%d pods, the first %s on %s", len(pods), pods[0].Status.Phase, pods[0].Spec.NodeName)
	})
	t.Logf("moved after %v", time.Since(begin).Round(time.Second))
	if now := c.podOn(t, c.near, "echo"); now.UID != stays.UID {
		t.Errorf("a pod that tolerates the loss was replaced")
	}
}

// testJoinAgain puts another machine in the place of the lost one: its name is refused until the
// old one is forgotten.
func testJoinAgain(t *testing.T, c *cluster) {
	if err := c.near.Remove(); err != nil {
		t.Fatal(err)
	}
	c.near = newMachine(t, sandbox.HostConfig{Name: "near", Address: nearIP})
	token := c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--quiet")
	args := []string{"--server", "https://" + c.main.Address() + ":6443", "--token-file",
		c.near.write(t, "token", strings.TrimSpace(token))}
	said := c.near.refused(t, append([]string{"agent", "--data-dir", dataDir()}, args...)...)
	t.Log(said)
	if !strings.Contains(said, "mote node forget near") {
		t.Errorf("said %q, not what lets it in", said)
	}
	t.Log(c.main.mote(t, "node", "forget", "--kubeconfig", c.kubeconfig, "near"))
	if _, err := c.client.CoreV1().Nodes().Get(t.Context(), "near", metav1.GetOptions{}); err == nil {
		t.Error("the node is still there after it was forgotten")
	}
	c.near.join(t, c, args...)
	c.near.importImages(t)
	c.kubectl(t, "delete", "deployment", "movable")
	c.allReady(t, 90*time.Second)
	c.connected(t)
}
