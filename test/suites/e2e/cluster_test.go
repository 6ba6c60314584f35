package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// cluster is one `mote server` and what is needed to talk to it. Its process may be stopped and
// started again.
type cluster struct {
	*harness.Process
	name       string
	dataDir    string
	kubeconfig string
	node       string
	port       int
	args       []string // beyond those every server is started with

	config *rest.Config
	client *kubernetes.Clientset
}

// newCluster prepares a server without starting it. All it makes is below the sandbox's folder.
func newCluster(t *testing.T, name string, port int, args ...string) *cluster {
	t.Helper()
	dir := filepath.Join(sandbox.Dir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		name:       name,
		dataDir:    filepath.Join(dir, "data"),
		kubeconfig: filepath.Join(dir, "kubeconfig.yaml"),
		node:       "node-" + name,
		port:       port,
		args:       args,
	}
	log, err := os.Create(filepath.Join(options.Artifacts, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	c.Process = harness.NewProcess(t, "mote ("+name+")", log)
	return c
}

// launch starts the process and returns at once.
func (c *cluster) launch(t *testing.T) {
	t.Helper()
	args := append([]string{
		"server", "--data-dir", c.dataDir, "--kubeconfig-output", c.kubeconfig, "--node-name", c.node,
		"--https-listen-port", strconv.Itoa(c.port),
	}, c.args...)
	c.Launch(t, sandbox.Command(context.Background(), options.Mote, args...))
}

// apiWithin waits until the API answers that it is ready, and returns how long that took since
// begin.
func (c *cluster) apiWithin(t *testing.T, begin time.Time, within time.Duration) time.Duration {
	t.Helper()
	harness.Eventually(t, within-time.Since(begin), "API server ready", func(ctx context.Context) error {
		if err := c.Alive(); err != nil {
			return err
		}
		if c.client == nil {
			config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
			if err != nil {
				return err
			}
			config.QPS, config.Burst = 200, 400
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			c.config, c.client = config, client
		}
		return c.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	return time.Since(begin)
}

// nodeReadyWithin waits for the node to be Ready by a heartbeat later than begin, so that what an
// earlier run wrote does not count.
func (c *cluster) nodeReadyWithin(t *testing.T, begin time.Time, within time.Duration) time.Duration {
	t.Helper()
	harness.Eventually(t, within-time.Since(begin), "node ready", func(ctx context.Context) error {
		if err := c.Alive(); err != nil {
			return err
		}
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := harness.NodeReady(node); err != nil {
			return err
		}
		ready, err := harness.ReadyCondition(node)
		if err == nil && ready.LastHeartbeatTime.Time.Before(begin.Truncate(time.Second)) {
			err = errors.New("node has not been heard of since the start")
		}
		return err
	})
	return time.Since(begin)
}

// start launches the server and waits for the node, with deadlines for a busy machine; tests of
// speed look at what it returns.
func (c *cluster) start(t *testing.T) (api, node time.Duration) {
	t.Helper()
	begin := time.Now()
	c.launch(t)
	api = c.apiWithin(t, begin, 60*time.Second)
	node = c.nodeReadyWithin(t, begin, 90*time.Second)
	t.Logf("%s, start %d: API ready after %v, node Ready after %v", c.name, c.Starts(), api.Round(time.Millisecond),
		node.Round(time.Millisecond))
	return api, node
}

// importImages loads archives the way a user does, into the running server.
func (c *cluster) importImages(t *testing.T, names ...string) {
	t.Helper()
	args := []string{"image", "import", "--data-dir", c.dataDir}
	for _, n := range names {
		args = append(args, filepath.Join(options.Images, n+".tar"))
	}
	begin := time.Now()
	runMote(t, args...)
	t.Logf("imported %s in %v", strings.Join(names, ", "), time.Since(begin).Round(time.Millisecond))
}

// runMote runs one command of mote's to its end and returns its output; it must succeed.
func runMote(t *testing.T, args ...string) string {
	t.Helper()
	return harness.Output(t, nil, options.Mote, args...)
}
