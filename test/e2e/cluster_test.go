package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/sandbox"
)

// cluster is one `mote server` and what is needed to talk to it. Its process may be stopped and started again.
type cluster struct {
	name       string
	dataDir    string
	kubeconfig string
	node       string
	port       int
	args       []string // beyond those every server is started with

	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{} // closed once cmd has ended
	starts int

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
		name: name, dataDir: filepath.Join(dir, "data"), kubeconfig: filepath.Join(dir, "kubeconfig.yaml"), node: "node-" + name, port: port, args: args,
	}
	if err := os.MkdirAll(options.artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(options.artifacts, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	c.log = log
	t.Cleanup(func() {
		if c.running() {
			c.kill(t)
		}
		log.Close()
	})
	return c
}

// launch starts the process and returns at once.
func (c *cluster) launch(t *testing.T) {
	t.Helper()
	args := append([]string{
		"server", "--data-dir", c.dataDir, "--kubeconfig-output", c.kubeconfig, "--node-name", c.node, "--https-listen-port", strconv.Itoa(c.port),
	}, c.args...)
	c.starts++
	fmt.Fprintf(c.log, "--- start %d: mote %s\n", c.starts, strings.Join(args, " "))
	cmd := exec.Command(options.mote, args...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	// A Ctrl-C on the terminal is the sandbox's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start mote: %v", err)
	}
	exited := make(chan struct{})
	c.cmd, c.exited = cmd, exited
	go func() {
		defer close(exited)
		// How it ended is in ProcessState, for whoever waits.
		_ = cmd.Wait()
	}()
}

func (c *cluster) running() bool {
	if c.cmd == nil {
		return false
	}
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// apiWithin waits until the API answers that it is ready, and returns how long that took since begin.
func (c *cluster) apiWithin(t *testing.T, begin time.Time, within time.Duration) time.Duration {
	t.Helper()
	eventually(t, within-time.Since(begin), "API server ready", func(ctx context.Context) error {
		if !c.running() {
			return fmt.Errorf("%w: mote ended: %v\n%s", errStop, c.cmd.ProcessState, c.tail(20))
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

// nodeReadyWithin waits for the node to be Ready by a heartbeat later than begin, so that what an earlier run wrote does not count.
func (c *cluster) nodeReadyWithin(t *testing.T, begin time.Time, within time.Duration) time.Duration {
	t.Helper()
	eventually(t, within-time.Since(begin), "node ready", func(ctx context.Context) error {
		if !c.running() {
			return fmt.Errorf("%w: mote ended: %v\n%s", errStop, c.cmd.ProcessState, c.tail(20))
		}
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type != corev1.NodeReady {
				continue
			}
			if cond.Status != corev1.ConditionTrue {
				return fmt.Errorf("node is not ready: %s: %s", cond.Reason, cond.Message)
			}
			if cond.LastHeartbeatTime.Time.Before(begin.Truncate(time.Second)) {
				return errors.New("node has not been heard of since the start")
			}
			return nil
		}
		return errors.New("node has no ready condition yet")
	})
	return time.Since(begin)
}

// start launches the server and waits for the node, with deadlines for a busy machine; tests of speed look at what it returns.
func (c *cluster) start(t *testing.T) (api, node time.Duration) {
	t.Helper()
	begin := time.Now()
	c.launch(t)
	api = c.apiWithin(t, begin, 60*time.Second)
	node = c.nodeReadyWithin(t, begin, 90*time.Second)
	t.Logf("%s, start %d: API ready after %v, node Ready after %v", c.name, c.starts, api.Round(time.Millisecond), node.Round(time.Millisecond))
	return api, node
}

// stop sends SIGTERM and wants the process to end well within ten seconds, as the command line promises.
func (c *cluster) stop(t *testing.T) {
	t.Helper()
	begin := time.Now()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("send SIGTERM: %v", err)
	}
	select {
	case <-c.exited:
		t.Logf("%s ended %v after SIGTERM", c.name, time.Since(begin).Round(time.Millisecond))
		if code := c.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("mote ended with code %d after SIGTERM\n%s", code, c.tail(20))
		}
	case <-time.After(10 * time.Second):
		t.Errorf("mote did not end within 10 s of SIGTERM\n%s", c.tail(20))
		c.dumpGoroutines()
		c.kill(t)
	}
}

// dumpGoroutines makes a stuck process say where it is stuck: Go answers SIGQUIT with all stacks, into the log.
func (c *cluster) dumpGoroutines() {
	if c.cmd.Process.Signal(syscall.SIGQUIT) != nil {
		return
	}
	select {
	case <-c.exited:
	case <-time.After(5 * time.Second):
	}
}

func (c *cluster) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("kill mote: %v", err)
	}
	<-c.exited
}

// tail is the end of the server's log.
func (c *cluster) tail(lines int) string {
	data, err := os.ReadFile(c.log.Name())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// importImages loads archives the way a user does, into the running server.
func (c *cluster) importImages(t *testing.T, names ...string) {
	t.Helper()
	args := []string{"image", "import", "--data-dir", c.dataDir}
	for _, n := range names {
		args = append(args, filepath.Join(options.images, n+".tar"))
	}
	begin := time.Now()
	runMote(t, args...)
	t.Logf("imported %s in %v", strings.Join(names, ", "), time.Since(begin).Round(time.Millisecond))
}

// runMote runs one command of mote's to its end and returns its output; it must succeed.
func runMote(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, options.mote, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("mote %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
