package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// TestOffline starts a node that has nothing but loopback, as a machine does whose cable is not in
// yet, runs a pod on it, and plugs the cable in.
func TestOffline(t *testing.T) {
	options.NeedMote(t)
	before := snapshot(t)
	t.Cleanup(func() {
		if err := sandbox.PowerCut(before); err != nil {
			t.Error(err)
		}
	})
	ip(t, "route", "del", "default")
	ip(t, "addr", "flush", "dev", "eth0")
	ip(t, "link", "set", "eth0", "down")
	connected := false
	connect := func() {
		if !connected {
			connected = true
			ip(t, "link", "set", "eth0", "up")
			ip(t, "addr", "add", sandbox.HostIP+"/24", "dev", "eth0")
			ip(t, "route", "add", "default", "via", sandbox.OutsideIP)
		}
	}
	t.Cleanup(connect)

	c := newCluster(t, "offline", 6743)
	c.start(t)
	c.importImages(t, "busybox", "podtool")
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30083}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "example.com/podtool:1", args: [serve, ":8080"]}]
---
` + toolPod("client"))
	s.ready("web")
	s.ready("client")
	harness.Eventually(t, 20*time.Second, "service by name without a network", func(ctx context.Context) error {
		_, err := s.try(ctx, "", "exec", "client", "--", "podtool", "get", "http://web/")
		return err
	})
	connect()
	harness.Eventually(t, 90*time.Second, "node found its address", func(ctx context.Context) error {
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && a.Address == sandbox.HostIP {
				return nil
			}
		}
		return fmt.Errorf("addresses are %v", node.Status.Addresses)
	})
	harness.Eventually(t, 60*time.Second, "reached from another machine", func(ctx context.Context) error {
		out, err := outside(ctx, "curl", "-sSf", "--max-time", "3", "http://"+sandbox.HostIP+":30083/").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	fetched(t, 10*time.Second, "http://"+s.clusterIP("web")+"/", "web ")
	c.Stop(t)
	runMote(t, "uninstall", "--data-dir", c.dataDir, "--yes")
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}
