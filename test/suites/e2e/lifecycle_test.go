package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
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

// survivors is a set of workloads that must outlive what happens to their server.
type survivors struct {
	*space
	writes int // config maps written so far, one before each test: all must be found again
}

const survivorsManifest = `
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  type: NodePort
  selector: {app: front}
  ports: [{port: 80, targetPort: 8080, nodePort: 30082}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front, part: survivors}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: example.com/shop:1.0
        imagePullPolicy: IfNotPresent
        args: [nodeinfo]
        env: [{name: NODE_NAME, value: survivor}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: state}
spec:
  clusterIP: None
  selector: {app: state}
  ports: [{port: 80}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: state}
spec:
  serviceName: state
  replicas: 1
  selector: {matchLabels: {app: state}}
  template:
    metadata: {labels: {app: state, part: survivors}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: data, emptyDir: {}}]
      containers:
      - name: main
        image: ` + busyboxImage + `
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "date +%s%N >> /data/starts; sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: every}
spec:
  selector: {matchLabels: {app: every}}
  template:
    metadata: {labels: {app: every, part: survivors}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: ` + busyboxImage + `
        imagePullPolicy: IfNotPresent
        command: [sleep, "100000"]
`

func startSurvivors(t *testing.T, c *cluster) *survivors {
	t.Helper()
	s := &survivors{space: c.namespaceNamed(t, "survivors")}
	s.apply(survivorsManifest)
	s.rollout("deployment/front")
	s.rollout("statefulset/state")
	s.rollout("daemonset/every")
	// What has to go on without the server must have begun: the proxy may be a second behind.
	fetched(t, 20*time.Second, "http://"+sandbox.HostIP+":30082/", "survivor")
	return s
}

// on binds the survivors to a test, and writes an object whose survival that test shall prove.
func (s *survivors) on(t *testing.T) *survivors {
	t.Helper()
	// Copied, so that failures are counted where they happen; the counter is the original's.
	b := &survivors{space: &space{cluster: s.cluster, t: t, name: s.name}}
	s.writes++
	b.writes = s.writes
	b.kubectl("create", "configmap", fmt.Sprintf("write-%d", s.writes))
	t.Cleanup(func() {
		if t.Failed() && s.Running() {
			b.explain(context.WithoutCancel(t.Context()))
		}
	})
	return b
}

// containers maps each container of the survivors to its id and number of restarts.
func (s *survivors) containers() map[string]string {
	s.t.Helper()
	ids := map[string]string{}
	for _, p := range s.pods("part=survivors") {
		for _, c := range p.Status.ContainerStatuses {
			ids[p.Name+"/"+c.Name] = fmt.Sprintf("%s after %d restarts", c.ContainerID, c.RestartCount)
		}
	}
	return ids
}

// processes lists the survivors' main processes on the host.
func (s *survivors) processes() []int {
	return append(pidsOf("/shop nodeinfo"), pidsOf("sleep 100000")...)
}

// pidsOf lists the processes whose command line begins so.
func pidsOf(command string) []int {
	return sandbox.FindProcesses(func(c string) bool { return strings.HasPrefix(c, command) })
}

// nothingLost wants every write that was acknowledged, and every workload ready and reachable.
func (s *survivors) nothingLost(within time.Duration) {
	s.t.Helper()
	for i := 1; i <= s.writes; i++ {
		if _, err := s.try(s.t.Context(), "", "get", "configmap", fmt.Sprintf("write-%d", i)); err != nil {
			s.t.Error(err)
		}
	}
	harness.Eventually(s.t, within, "workloads ready", func(ctx context.Context) error {
		pods := s.pods("part=survivors")
		if len(pods) != 4 {
			return fmt.Errorf("%d pods, want 4", len(pods))
		}
		for _, p := range pods {
			ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			})
			if !ready || p.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s is %s: %s", p.Name, p.Status.Phase, harness.ContainerStates(&p))
			}
			// A status from before the event does not count: the process must be there.
			if _, err := s.try(ctx, "", "exec", p.Name, "--", execProbe(p)); err != nil &&
				!strings.Contains(err.Error(), "want one of: web") {
				return err
			}
		}
		code, body, err := fetch(ctx, http.MethodGet, "http://"+sandbox.HostIP+":30082/", "")
		if err != nil || code != http.StatusOK || !strings.Contains(body, "survivor") {
			return fmt.Errorf("service: %d %q %w", code, body, err)
		}
		return nil
	})
	if n := len(s.processes()); n != 4 {
		s.t.Errorf("%d processes of the workloads run, want 4", n)
	}
}

// execProbe is a program that exists in the pod's image; the shop's own answers without arguments
// with its usage, and code 1.
func execProbe(p corev1.Pod) string {
	if strings.Contains(p.Spec.Containers[0].Image, "shop") {
		return "/shop"
	}
	return "true"
}

// testRestart stops the server as a service manager does and starts it again: nothing may happen to
// the pods.
func testRestart(t *testing.T, s *survivors) {
	restartUnder(t, s.on(t), func(s *survivors) { s.Stop(t) })
}

// testCrash does the same with kill -9, during writes.
func testCrash(t *testing.T, s *survivors) {
	restartUnder(t, s.on(t), func(s *survivors) { s.Kill(t) })
}

func restartUnder(t *testing.T, s *survivors, end func(*survivors)) {
	ids, pids := s.containers(), s.processes()
	if len(ids) != 4 || len(pids) != 4 {
		t.Fatalf("%d containers, %d processes, want 4 of each", len(ids), len(pids))
	}
	// Writes go on until the server is gone; each that was acknowledged must be there afterwards.
	var acknowledged []string
	payloads := metav1.ListOptions{LabelSelector: "payload=yes"}
	writing, stopped := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; writing.Err() == nil; i++ {
			name := fmt.Sprintf("%s-%d", strings.ToLower(t.Name()[strings.LastIndex(t.Name(), "/")+1:]), i)
			cm := &corev1.ConfigMap{}
			cm.Name, cm.Labels, cm.Data = name, map[string]string{"payload": "yes"},
				map[string]string{"payload": strings.Repeat("x", 1000)}
			ctx, cancel := context.WithTimeout(writing, 2*time.Second)
			_, err := s.client.CoreV1().ConfigMaps(s.name).Create(ctx, cm, metav1.CreateOptions{})
			cancel()
			if err == nil {
				acknowledged = append(acknowledged, name)
			}
		}
	}()
	harness.Eventually(t, 60*time.Second, "writes under way", func(ctx context.Context) error {
		l, err := s.client.CoreV1().ConfigMaps(s.name).List(ctx, payloads)
		if err != nil || len(l.Items) < 20 {
			return fmt.Errorf("too few (%w)", err)
		}
		return nil
	})
	end(s)
	stopped()
	<-done
	if got := s.processes(); !slices.Equal(got, pids) {
		t.Errorf("while the server was away, processes were %v, before %v", got, pids)
	}
	// The pods keep serving without it.
	fetched(t, 20*time.Second, "http://"+sandbox.HostIP+":30082/", "survivor")

	begin := time.Now()
	s.launch(t)
	harness.Promised(t, "API was back", s.apiWithin(t, begin, 60*time.Second), 5*time.Second)
	node := s.nodeReadyWithin(t, begin, 60*time.Second)
	t.Logf("node was Ready again after %v", node.Round(time.Millisecond))
	s.nothingLost(30 * time.Second)
	if got := s.containers(); !maps.Equal(got, ids) {
		t.Errorf("containers are %v, before %v", got, ids)
	}
	if got := s.processes(); !slices.Equal(got, pids) {
		t.Errorf("processes are %v, before %v", got, pids)
	}
	for _, name := range acknowledged {
		if _, err := s.client.CoreV1().ConfigMaps(s.name).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("an acknowledged write is lost: %v", err)
		}
	}
	t.Logf("%d writes were acknowledged before the end", len(acknowledged))
	if err := s.client.CoreV1().ConfigMaps(s.name).DeleteCollection(t.Context(), metav1.DeleteOptions{},
		payloads); err != nil {
		t.Log(err)
	}
}

// testShimsKilled kills the processes between containerd and the pods: the pods must be seen dead,
// and started anew.
func testShimsKilled(t *testing.T, shared *survivors) {
	s := shared.on(t)
	ids := s.containers()
	shims := shimPids()
	if len(shims) < 4 {
		t.Fatalf("%d shims, want 4 at least", len(shims))
	}
	for _, pid := range shims {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, 120*time.Second, "all containers replaced", func(context.Context) error {
		now := s.containers()
		for name, id := range ids {
			if now[name] == id {
				return fmt.Errorf("%s is still %s", name, id)
			}
		}
		if len(now) < 4 {
			return fmt.Errorf("%d containers", len(now))
		}
		return nil
	})
	s.nothingLost(120 * time.Second)
}

func shimPids() []int {
	return sandbox.FindProcesses(func(command string) bool {
		program, _, _ := strings.Cut(command, " ")
		return strings.Contains(filepath.Base(program), "containerd-shim")
	})
}

// testReboot cuts the power, may damage what is on disk, and starts the server once more. Every
// workload must come back, with nothing done by hand.
func testReboot(t *testing.T, shared *survivors, before sandbox.Snapshot, damage func(*testing.T, *cluster)) {
	s := shared.on(t)
	s.Kill(t)
	if err := sandbox.PowerCut(before); err != nil {
		t.Fatal(err)
	}
	if damage != nil {
		damage(t, s.cluster)
	}
	begin := time.Now()
	s.launch(t)
	api := s.apiWithin(t, begin, 60*time.Second)
	node := s.nodeReadyWithin(t, begin, 90*time.Second)
	s.nothingLost(150 * time.Second)
	t.Logf("API ready after %v, node after %v, all workloads after %v", api.Round(time.Millisecond),
		node.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	// And the node takes new work.
	s.apply(busyboxPod("after-reboot", "sleep 100"))
	s.ready("after-reboot")
	s.kubectl("delete", "pod", "after-reboot", "--timeout=60s")
}

// cutMetadata leaves containerd's database as a power cut may: half of it missing.
func cutMetadata(t *testing.T, c *cluster) {
	file := findFile(t, c.dataDir, "meta.db")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}

// damageBlob empties a part of the blob that describes the shop's image, as a file system does
// whose journal had only the name.
func damageBlob(t *testing.T, c *cluster) {
	dir := filepath.Dir(findFile(t, c.dataDir, configDigest(t, "shop-1.0")))
	blob := filepath.Join(dir, configDigest(t, "shop-1.0"))
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(data) / 3; i < len(data)*2/3; i++ {
		data[i] = 0
	}
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob, data, 0o444); err != nil {
		t.Fatal(err)
	}
}

// recover brings the cluster back after a test failed and left it in an unknown state.
func (s *survivors) recover(t *testing.T, before sandbox.Snapshot) {
	t.Helper()
	if s.Running() {
		s.Kill(t)
	}
	if err := sandbox.PowerCut(before); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	c := &survivors{space: &space{cluster: s.cluster, t: t, name: s.name}}
	if _, err := c.try(t.Context(), survivorsManifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"deployment/front", "statefulset/state", "daemonset/every"} {
		if _, err := c.try(t.Context(), "", "rollout", "status", w, "--timeout=120s"); err != nil {
			t.Error(err)
		}
	}
}
