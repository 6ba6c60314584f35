package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

const busyboxImage = "docker.io/library/busybox:1.36"

// busyboxPod is a pod that runs one shell line and can be ended at once.
func busyboxPod(name, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  labels: {app: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    imagePullPolicy: IfNotPresent
    command: [sh, -c, %q]
`, name, busyboxImage, script)
}

// toolPod is a pod with podtool and a shell, that waits for what is run in it.
func toolPod(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 1\n"+
		"  containers: [{name: main, image: \"example.com/podtool:1\", imagePullPolicy: IfNotPresent, args: [serve, \":8080\"]}]\n", name)
}

func restartedOnce(p *corev1.Pod) error {
	if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].RestartCount == 0 {
		return errors.New("not restarted: " + harness.ContainerStates(p))
	}
	return nil
}

func testProbes(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: unready}
spec:
  selector: {app: unready}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata:
  name: unready
  labels: {app: unready}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "touch /tmp/ready; sleep 3600"]
    readinessProbe:
      exec: {command: [cat, /tmp/ready]}
      periodSeconds: 1
      failureThreshold: 1
---
apiVersion: v1
kind: Pod
metadata: {name: unlive}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "sleep 3600"]
    livenessProbe:
      tcpSocket: {port: 4444}
      periodSeconds: 1
      failureThreshold: 2
---
apiVersion: v1
kind: Pod
metadata: {name: unstarted}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "sleep 3600"]
    startupProbe:
      httpGet: {path: /, port: 4444}
      periodSeconds: 1
      failureThreshold: 3
`)
	endpoints := func(want int) {
		t.Helper()
		harness.Eventually(t, 30*time.Second, fmt.Sprintf("%d ready endpoints", want), func(ctx context.Context) error {
			slices, err := s.client.DiscoveryV1().EndpointSlices(s.name).List(ctx,
				metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=unready"})
			if err != nil {
				return err
			}
			n := 0
			for _, sl := range slices.Items {
				for _, e := range sl.Endpoints {
					if e.Conditions.Ready != nil && *e.Conditions.Ready {
						n++
					}
				}
			}
			if n != want {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
	s.ready("unready")
	endpoints(1)
	s.exec("unready", "rm", "/tmp/ready")
	endpoints(0)
	s.exec("unready", "touch", "/tmp/ready")
	endpoints(1)
	s.podUntil("unlive", 180*time.Second, "restarted by its liveness probe", restartedOnce)
	s.podUntil("unstarted", 180*time.Second, "restarted by its startup probe", restartedOnce)
	if n := s.pod("unready").Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("a failing readiness probe restarted the container %d times", n)
	}
}

func testOOM(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: example.com/podtool:1
    args: [eat, "200"]
    resources:
      limits: {memory: 40Mi}
`)
	s.podUntil("hungry", 180*time.Second, "killed for its memory", func(p *corev1.Pod) error {
		if p.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("pod is %s: %s", p.Status.Phase, harness.ContainerStates(p))
		}
		end := p.Status.ContainerStatuses[0].State.Terminated
		if end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
			return fmt.Errorf("%w: container ended otherwise: %s", harness.ErrStop, harness.ContainerStates(p))
		}
		return nil
	})
	if out := s.kubectl("get", "pod", "hungry"); !strings.Contains(out, "OOMKilled") {
		t.Errorf("kubectl get pod shows %q", out)
	}
}

// testInitAndSidecars wants init containers one after the other, a sidecar before and beside the
// main container, and it ended after.
func testInitAndSidecars(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 10
  volumes: [{name: log, emptyDir: {}}]
  initContainers:
  - name: first
    image: ` + busyboxImage + `
    command: [sh, -c, "echo first >> /log/order"]
    volumeMounts: [{name: log, mountPath: /log}]
  - name: sidecar
    image: ` + busyboxImage + `
    restartPolicy: Always
    command: [sh, -c, "trap 'echo sidecar-end >> /log/order; cat /log/order; exit 0' TERM; echo sidecar >> /log/order; touch /log/up; while :; do sleep 0.1; done"]
    startupProbe:
      exec: {command: [cat, /log/up]}
      periodSeconds: 1
      timeoutSeconds: 10
      failureThreshold: 60
    volumeMounts: [{name: log, mountPath: /log}]
  - name: second
    image: ` + busyboxImage + `
    command: [sh, -c, "echo second >> /log/order"]
    volumeMounts: [{name: log, mountPath: /log}]
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "echo main >> /log/order; sleep 1; echo main-end >> /log/order"]
    volumeMounts: [{name: log, mountPath: /log}]
`)
	p := s.podUntil("ordered", 180*time.Second, "succeeded", func(p *corev1.Pod) error {
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("pod is %s: %s", p.Status.Phase, harness.ContainerStates(p))
		}
		return nil
	})
	got := strings.Fields(s.kubectl("logs", "ordered", "-c", "sidecar"))
	want := []string{"first", "sidecar", "second", "main", "main-end", "sidecar-end"}
	if !slices.Equal(got, want) {
		t.Errorf("order was %v, want %v", got, want)
	}
	for _, st := range p.Status.InitContainerStatuses {
		if st.State.Terminated == nil || st.State.Terminated.ExitCode != 0 {
			t.Errorf("container %s did not end well: %s", st.Name, harness.ContainerStates(p))
		}
	}
}

// testTermination wants the preStop hook first, then SIGTERM, then the rest of the grace period,
// then SIGKILL.
func testTermination(t *testing.T, c *cluster) {
	s := c.namespace(t)
	const path = "/var/log/e2e-termination"
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{name: log, hostPath: {path: ` + path + `, type: DirectoryOrCreate}}]
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "trap 'echo term >> /log/polite; sleep 1; echo bye >> /log/polite; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo start >> /log/polite"]}}
      preStop: {exec: {command: [sh, -c, "echo hook >> /log/polite; sleep 1"]}}
    volumeMounts: [{name: log, mountPath: /log}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 4
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"]
`)
	s.ready("polite")
	s.ready("stubborn")
	begin := time.Now()
	s.kubectl("delete", "pod", "stubborn", "polite", "--wait=false")
	gone := func(name string) time.Duration {
		harness.Eventually(t, 40*time.Second, name+" gone", func(ctx context.Context) error {
			_, err := s.client.CoreV1().Pods(s.name).Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("still there (%v)", err)
		})
		return time.Since(begin)
	}
	polite, stubborn := gone("polite"), gone("stubborn")
	t.Logf("polite gone after %v, stubborn after %v", polite.Round(time.Millisecond), stubborn.Round(time.Millisecond))
	if polite < 2*time.Second || polite > 20*time.Second {
		t.Errorf("the pod that ends by itself after 2 s took %v", polite)
	}
	if stubborn < 4*time.Second || stubborn > 25*time.Second {
		t.Errorf("the pod that ignores SIGTERM and has 4 s took %v", stubborn)
	}
	if got := strings.Fields(readFile(t, path+"/polite")); !slices.Equal(got,
		[]string{"start", "hook", "term", "bye"}) {
		t.Errorf("order was %v", got)
	}
}

func testVolumes(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: "1", b: "2"}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {key: s3cret}
---
apiVersion: v1
kind: Pod
metadata:
  name: volumes
  labels: {tier: front}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  volumes:
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: b, path: conf/b}]}
      - secret: {name: secret, items: [{key: key, path: key, mode: 0440}]}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
      - serviceAccountToken: {path: token, audience: elsewhere, expirationSeconds: 600}
  - name: memory
    emptyDir: {medium: Memory, sizeLimit: 8Mi}
  - name: scratch
    emptyDir: {}
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "sleep 3600"]
    envFrom: [{configMapRef: {name: settings}, prefix: CONF_}]
    env:
    - {name: KEY, valueFrom: {secretKeyRef: {name: secret, key: key}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 1, memory: 64Mi}}
    volumeMounts:
    - {name: all, mountPath: /all}
    - {name: memory, mountPath: /memory}
    - {name: scratch, mountPath: /scratch}
    - {name: scratch, mountPath: /sub, subPath: below}
`)
	p := s.ready("volumes")
	for command, want := range map[string]string{
		"cat /all/conf/b":                "2",
		"cat /all/key":                   "s3cret",
		"cat /all/labels":                `tier="front"`,
		"echo $CONF_a $CONF_b $KEY $CPU": "1 2 s3cret 1",
		"echo $IP":                       p.Status.PodIP,
		"id -u; id -G":                   "1000\n0 2000",
		"touch /scratch/f && stat -c %g /scratch/f":     "2000",
		"touch /sub/g && ls /scratch/below":             "g",
		"grep ' /memory ' /proc/mounts | cut -d' ' -f3": "tmpfs",
		"test -s /all/token && echo has":                "has",
	} {
		if out := strings.TrimSpace(s.exec("volumes", "sh", "-c", command)); out != want {
			t.Errorf("%s: %q, want %q", command, out, want)
		}
	}
}

// testGarbage wants what belongs to a deleted object collected, and a namespace's contents gone
// with it.
func testGarbage(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: owner}
spec:
  replicas: 1
  selector: {matchLabels: {app: owner}}
  template:
    metadata: {labels: {app: owner}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: ` + busyboxImage + `
        command: [sh, -c, "sleep 3600"]
`)
	s.rollout("deployment/owner")
	s.kubectl("delete", "deployment", "owner", "--cascade=foreground", "--timeout=60s")
	harness.Eventually(t, 30*time.Second, "pods collected", func(context.Context) error {
		if n := len(s.pods("app=owner")); n != 0 {
			return fmt.Errorf("%d left", n)
		}
		return nil
	})
	s.apply(busyboxPod("left", "sleep 3600"))
	s.ready("left")
	s.kubectl("delete", "namespace", s.name, "--timeout=90s")
}
