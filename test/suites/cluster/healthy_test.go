package cluster

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// expectedAlarms are the lines above INFO that a healthy mote may log.
var expectedAlarms = []*regexp.Regexp{
	// The machine of continuous integration has cgroup version 1, of which mote and the kubelet
	// warn.
	regexp.MustCompile(`(?i)cgroup`),
}

// TestHealthy starts a server and an agent, runs the shop, stops both, and wants nothing above INFO
// in their logs: a warning while all is well hides the one that matters.
func TestHealthy(t *testing.T) {
	options.NeedMote(t)
	c := &cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-healthy")}
	c.main = newMachine(t, sandbox.HostConfig{Name: "healthy", Address: mainIP})
	c.near = newMachine(t, sandbox.HostConfig{Name: "healthy-2", Address: nearIP})
	inOrder(t, c, []step[*cluster]{
		{"Start", testHealthyStart},
		{"Shop", testHealthyShop},
		{"Stop", testHealthyStop},
		{"Logs", testHealthyLogs},
	})
}

func testHealthyStart(t *testing.T, c *cluster) {
	begin := time.Now()
	c.main.launch(t, "server", "--kubeconfig-output", c.kubeconfig)
	c.takeKubeconfig(t)
	c.readyWithin(t, c.main, begin, 60*time.Second)
	harness.Eventually(t, 60*time.Second, "the server says it is ready", func(context.Context) error {
		if err := c.main.Alive(); err != nil {
			return err
		}
		if !strings.Contains(c.main.said(), "mote is ready") {
			return errors.New("it does not yet")
		}
		return nil
	})
	token := strings.TrimSpace(c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--quiet"))
	c.near.join(t, c, "--server", "https://"+mainIP+":6443", "--token-file", c.near.write(t, "token", token))
	for _, m := range c.machines() {
		m.mote(t, "image", "import", "--data-dir", dataDir(), filepath.Join(options.Images, "shop-1.0.tar"),
			filepath.Join(options.Images, "busybox.tar"))
	}
}

func testHealthyShop(t *testing.T, c *cluster) {
	kube := c.kube()
	kube.Namespace = "shop"
	kube.Run(t, "apply", "-k", filepath.Join(options.examples, "shop", "deploy"))
	for _, what := range []string{"deployment/web", "statefulset/ledger", "daemonset/nodeinfo"} {
		kube.Run(t, "rollout", "status", what, "--timeout=120s")
	}
	kube.Run(t, "wait", "--for=condition=complete", "job/seed", "--timeout=60s")
	for _, m := range c.machines() {
		harness.Eventually(t, 20*time.Second, "the shop at "+m.Name(), func(ctx context.Context) error {
			out, err := m.Command(ctx, options.podtool, "get", "http://"+m.Address()+":30080/").CombinedOutput()
			if err == nil && !strings.Contains(string(out), "Welcome to the shop") {
				err = errors.New(string(out))
			}
			return err
		})
	}
}

// testHealthyStop stops the agent first, as its server is there to be told.
func testHealthyStop(t *testing.T, c *cluster) {
	c.near.Stop(t)
	c.main.Stop(t)
}

func testHealthyLogs(t *testing.T, c *cluster) {
	for _, m := range c.machines() {
		if lines := m.Alarms(t, expectedAlarms...); len(lines) > 0 {
			t.Errorf("%d lines above INFO in %s:\n%s", len(lines), m.LogName(), strings.Join(lines, "\n"))
		}
	}
}
