package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// TestCluster starts one server on an empty data folder and takes it through everything: first what
// can run side by side, then what disturbs others, at last its removal. The order of the serial
// part matters: each leaves a working cluster to the next but the last.
func TestCluster(t *testing.T) {
	options.NeedMote(t)
	before := snapshot(t)
	// Registered first, so that it runs last: whatever became of the test, the next finds an empty
	// machine.
	t.Cleanup(func() {
		if err := sandbox.PowerCut(before); err != nil {
			t.Error(err)
		}
	})
	c := newCluster(t, "main", 6443)

	api, node := c.start(t)
	t.Run("Start", func(t *testing.T) { testFirstStart(t, c, api, node) })
	c.importImages(t, "busybox", "shop-1.0", "shop-2.0", "podtool", "operator")

	t.Run("Parallel", func(t *testing.T) {
		for _, row := range []struct {
			name string
			run  func(*testing.T, *cluster)
		}{
			// The longest first: the others fill the gaps.
			{"Shop", testShop},
			{"Operator", testOperator},
			{"Helm", testHelm},
			{"Services", testServices},
			{"DNS", testDNS},
			{"CustomResources", testCustomResources},
			{"Logs", testLogs},
			{"ExecTTY", testExecTTY},
			{"Attach", testAttach},
			{"PortForward", testPortForward},
			{"Proxies", testProxies},
			{"Copy", testCopy},
			{"Debug", testDebug},
			{"Probes", testProbes},
			{"OOM", testOOM},
			{"InitAndSidecars", testInitAndSidecars},
			{"Termination", testTermination},
			{"ServiceAccount", testServiceAccount},
			{"RBAC", testRBAC},
			{"Certificates", testCertificates},
			{"Volumes", testVolumes},
			{"ServerSideApply", testServerSideApply},
			{"Garbage", testGarbage},
			{"Images", testImages},
			{"SecondInstance", testSecondInstance},
		} {
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				row.run(t, c)
			})
		}
	})
	if err := c.Alive(); err != nil {
		t.Fatal(err)
	}
	t.Run("Drain", func(t *testing.T) { testDrain(t, c) })
	t.Run("AdminRevoked", func(t *testing.T) { testAdminRevoked(t, c) })

	s := startSurvivors(t, c)
	for _, row := range []struct {
		name string
		run  func(*testing.T, *survivors)
	}{
		{"Restart", testRestart},
		{"Crash", testCrash},
		{"ShimsKilled", testShimsKilled},
		{"Reboot", func(t *testing.T, s *survivors) { testReboot(t, s, before, nil) }},
		{"RebootMetadataDamaged", func(t *testing.T, s *survivors) { testReboot(t, s, before, cutMetadata) }},
		{"RebootBlobDamaged", func(t *testing.T, s *survivors) { testReboot(t, s, before, damageBlob) }},
	} {
		ok := t.Run(row.name, func(t *testing.T) { row.run(t, s) })
		if !ok {
			// The next one must say something about itself, not about this one.
			s.recover(t, before)
		}
	}
	t.Run("Uninstall", func(t *testing.T) { testUninstall(t, c, before) })
}

// testFirstStart checks the promise made for a first start on an empty folder, and prints how the
// time was spent.
func testFirstStart(t *testing.T, c *cluster, api, node time.Duration) {
	harness.Promised(t, "node was Ready", node, 10*time.Second)
	t.Logf("API was ready after %v; the server says:", api.Round(time.Millisecond))
	for line := range strings.Lines(c.Tail(1000)) {
		if strings.Contains(line, "ready") || strings.Contains(line, "took") {
			t.Log("  ", strings.TrimSpace(line))
		}
	}
	info, err := os.Stat(c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig has mode %v, want 0600", info.Mode().Perm())
	}
	v, err := c.client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if v.GitVersion != "v1.37.2" || v.Major != "1" || !strings.HasPrefix(v.Minor, "37") {
		t.Errorf("/version says %s (%s.%s), want v1.37.2", v.GitVersion, v.Major, v.Minor)
	}
	if out := runMote(t, "version"); !strings.Contains(out, "v1.37.2") {
		t.Errorf("mote version says %q, want v1.37.2 in it", out)
	}
	if out := c.kubectl(t, "get", "nodes"); !strings.Contains(out, c.node) || !strings.Contains(out, "v1.37.2") {
		t.Errorf("kubectl get nodes: %s", out)
	}
}

func snapshot(t *testing.T, dirs ...string) sandbox.Snapshot {
	t.Helper()
	s, err := sandbox.Take(append(dirs, sandbox.Dir())...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
