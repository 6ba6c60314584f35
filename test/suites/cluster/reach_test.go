package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

func readFile(name string) (string, error) {
	data, err := os.ReadFile(name)
	return strings.TrimSpace(string(data)), err
}

// clusterIP is that of a service of the test's.
func (c *cluster) clusterIP(t *testing.T, service string) string {
	t.Helper()
	svc, err := c.client.CoreV1().Services(space).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

// testNetwork goes from every machine to every other: by address of a pod, service, name, and port
// of a node.
func testNetwork(t *testing.T, c *cluster) {
	service := c.clusterIP(t, "echo")
	for _, from := range c.machines() {
		t.Run("from "+from.Name(), func(t *testing.T) {
			pid, source := only(t, from.echoes()), c.podOn(t, from, "echo")
			get := func(ctx context.Context, host string) (string, error) {
				return from.inPod(ctx, pid, options.podtool, "get", "http://"+host+"/")
			}
			for _, to := range c.machines() {
				pod := c.podOn(t, to, "echo")
				// The tunnel to a node behind a NAT opens when that has spoken first.
				harness.Eventually(t, 30*time.Second, "pod on "+to.Name(), func(ctx context.Context) error {
					got, err := get(ctx, pod.Status.PodIP+":8080")
					if want := pod.Name + " " + source.Status.PodIP; err == nil && got != want {
						err = fmt.Errorf("%w: answered %q, want %q", harness.ErrStop, got, want)
					}
					return err
				})
			}
			harness.Eventually(t, 15*time.Second, "service leads to all pods", func(ctx context.Context) error {
				seen := map[string]bool{}
				for range 60 {
					got, err := get(ctx, service)
					if err != nil {
						return err
					}
					name, _, _ := strings.Cut(got, " ")
					seen[name] = true
				}
				if len(seen) != 3 {
					return fmt.Errorf("only to %v", seen)
				}
				return nil
			})
			if got, err := c.try(t.Context(), "", "exec", source.Name, "--", "podtool", "lookup", "A",
				"echo"); err != nil || strings.TrimSpace(got) != service {
				t.Errorf("the service's name leads to %q (%v), want %s", got, err, service)
			}
			if got, err := c.try(t.Context(), "", "exec", source.Name, "--", "podtool", "get",
				"http://echo."+space+".svc.cluster.local/"); err != nil || !strings.HasPrefix(got, "echo-") {
				t.Errorf("by the service's name: %q (%v)", got, err)
			}
		})
	}
	t.Run("NodePort", func(t *testing.T) {
		for _, m := range c.machines() {
			pod := c.podOn(t, m, "echo").Name
			seen := map[string]bool{}
			for range 60 {
				got, err := c.beside(t.Context(), m, "30090")
				if err != nil {
					t.Fatalf("port of %s: %v", m.Name(), err)
				}
				name, _, _ := strings.Cut(got, " ")
				seen[name] = true
			}
			if len(seen) != 3 {
				t.Errorf("the port of %s leads to %d of 3 pods: %v", m.Name(), len(seen), seen)
			}
			// With the local policy the pod on that node answers, and sees who asks.
			for range 5 {
				got, err := c.beside(t.Context(), m, "30091")
				if want := pod + " " + m.Gateway(); m == c.far && got != want || m != c.far &&
					got != pod+" "+besideIP || err != nil {
					t.Errorf("the local port of %s answers %q (%v)", m.Name(), got, err)
				}
			}
		}
	})
	t.Run("Large", func(t *testing.T) {
		for _, way := range [][2]*machine{{c.near, c.far}, {c.far, c.near}, {c.main, c.far}, {c.main, c.near}} {
			from := c.podOn(t, way[0], "talk")
			c.download(t, c.podOn(t, way[1], "talk"), from, from.Status.PodIP)
		}
	})
	t.Run("far is not reached from outside", func(t *testing.T) {
		for _, url := range []string{"http://" + c.far.Address() + ":30090/",
			"http://" + c.far.OuterAddress() + ":30090/"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if got, err := fetch(ctx, url); err == nil {
				t.Errorf("%s answers %q: there is no NAT, so nothing of this says anything", url, got)
			}
			cancel()
		}
	})
}

// listens finds a listener on port 9999 in /proc/net/tcp or tcp6; connections that have ended stay
// in there for a minute.
var listens = regexp.MustCompile(`:270F 0+:0000 0A `)

// download takes some megabytes from one pod to another: packets of full size, to see that no MTU
// is too large for what is between them. Both pods have busybox.
func (c *cluster) download(t *testing.T, to, from corev1.Pod, address string) {
	t.Helper()
	const size = 3 << 20
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		_, err := c.try(ctx, "", "exec", from.Name, "--", "nc", "-l", "-p", "9999", "-e", "head", "-c",
			fmt.Sprint(size), "/dev/zero")
		sent <- err
	}()
	harness.Eventually(t, 10*time.Second, "listener", func(ctx context.Context) error {
		out, err := c.try(ctx, "", "exec", from.Name, "--", "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6")
		if err == nil && !listens.MatchString(out) {
			err = fmt.Errorf("nobody listens: %s", out)
		}
		return err
	})
	got, err := c.try(ctx, "", "exec", to.Name, "--", "sh", "-c", "nc "+address+" 9999 </dev/null | wc -c")
	if err != nil || strings.TrimSpace(got) != fmt.Sprint(size) {
		t.Errorf("%s to %s: received %q of %d bytes (%v)", from.Spec.NodeName, to.Spec.NodeName, got, size, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// besideIP is the address of the sandbox itself, from where nodes are looked at.
const besideIP = "192.168.77.2"

// beside asks a port of a node from a machine next to it: the sandbox, or the router it stands
// behind.
func (c *cluster) beside(ctx context.Context, m *machine, port string) (string, error) {
	url := "http://" + m.Address() + ":" + port + "/"
	if m != c.far {
		return fetch(ctx, url)
	}
	out, err := m.OnRouter(ctx, "curl", "-sSf", "--max-time", "5", url).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s from the router: %w: %s", url, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// only wants one of a list.
func only(t *testing.T, pids []int) int {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("%d processes, want one", len(pids))
	}
	return pids[0]
}

var forwarded = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`)

// testTunnel does from beside the server what needs a way from the server to a node: all of it must
// work for a node that nobody reaches.
func testTunnel(t *testing.T, c *cluster) {
	for _, m := range c.machines() {
		t.Run(m.Name(), func(t *testing.T) {
			talk, echo := c.podOn(t, m, "talk").Name, c.podOn(t, m, "echo")
			if got := c.kubectl(t, "logs", talk); got != "here is "+m.Name()+"\n" {
				t.Errorf("logs: %q", got)
			}
			if got, err := c.try(t.Context(), "over and back", "exec", "-i", talk, "--", "cat"); err != nil ||
				got != "over and back" {
				t.Errorf("exec: %q, %v", got, err)
			}
			if _, err := c.try(t.Context(), "", "exec", talk, "--", "sh", "-c", "exit 7"); err == nil ||
				!strings.Contains(err.Error(), "exit code 7") {
				t.Errorf("exec of what fails: %v, want its exit code 7", err)
			}
			testCopy(t, c, talk)
			testPortForward(t, c, echo.Name)
			if got := c.kubectl(t, "get", "--raw",
				"/api/v1/nodes/"+m.Name()+"/proxy/metrics/resource"); !strings.Contains(got,
				"node_cpu_usage_seconds_total") || !strings.Contains(got, `pod="`+talk+`"`) {
				t.Errorf("metrics of the node: %.500s", got)
			}
			if got := c.kubectl(t, "get", "--raw",
				"/api/v1/namespaces/"+space+"/pods/"+echo.Name+":8080/proxy/"); !strings.HasPrefix(got, echo.Name+" ") {
				t.Errorf("proxy to the pod: %q", got)
			}
		})
	}
}

func testCopy(t *testing.T, c *cluster, pod string) {
	t.Helper()
	data := make([]byte, 1<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	there, back := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "back")
	if err := os.WriteFile(there, data, 0o644); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "cp", there, pod+":/tmp/copied")
	c.kubectl(t, "cp", pod+":/tmp/copied", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("cp: %d bytes came back (%v), want the same %d", len(got), err, len(data))
	}
}

func testPortForward(t *testing.T, c *cluster, pod string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := c.kube().Command(ctx, "port-forward", "pod/"+pod, ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := forwarded.FindStringSubmatch(lines.Text()); m != nil {
			for range 3 {
				if got, err := fetch(ctx, "http://"+m[1]+"/"); err != nil || !strings.HasPrefix(got, pod+" ") {
					t.Errorf("port-forward: %q, %v", got, err)
				}
			}
			return
		}
	}
	t.Errorf("port-forward to %s did not begin (%v)", pod, lines.Err())
}
