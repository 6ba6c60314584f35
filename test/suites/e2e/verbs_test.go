package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mote-dev/mote/test/tools/harness"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// testLogs follows a log while it is written, to its end, and reads an earlier container's.
func testLogs(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(busyboxPod("talker",
		"i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; while [ ! -e /tmp/stop ]; do sleep 0.1; done; echo last; exit 3"))
	s.ready("talker")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := c.command(ctx, "-n", s.name, "logs", "-f", "talker")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var got []string
	for lines.Scan() {
		got = append(got, lines.Text())
		if lines.Text() == "line 19" {
			s.exec("talker", "touch", "/tmp/stop")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f ended: %v", err)
	}
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	if want = append(want, "last"); !slices.Equal(got, want) {
		t.Errorf("followed %q", got)
	}
	s.podUntil("talker", 30*time.Second, "restarted", restartedOnce)
	if out := s.kubectl("logs", "talker", "--previous", "--tail=1"); out != "last\n" {
		t.Errorf("previous container's last line: %q", out)
	}
	if out := s.kubectl("logs", "talker", "--timestamps",
		"--limit-bytes=200"); !regexp.MustCompile(`(?m)^20\d\d-.*Z line 0$`).MatchString(out) {
		t.Errorf("with times: %q", out)
	}
}

// testExecTTY talks to a shell on a terminal: it must be one inside, of the size given, and pass on
// the exit code.
func testExecTTY(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(busyboxPod("shell", "sleep 3600"))
	s.ready("shell")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := c.command(ctx, "-n", s.name, "exec", "-it", "shell", "--", "sh")
	tty := startOnTerminal(t, cmd, 33, 120)
	tty.send("tty && echo is-a-$((40+2))-tty\n")
	tty.expect("is-a-42-tty")
	tty.send("stty size\n")
	tty.expect("33 120")
	tty.resize(t, 44, 99)
	tty.send("until [ \"$(stty size)\" = '44 99' ]; do sleep 0.1; done; echo resi$((0))zed\n")
	tty.expect("resi0zed")
	// Ctrl-C ends the program, not the shell; it is typed once the program has the terminal.
	tty.send("sh -c 'echo started-$((3+4)); exec cat'\n")
	tty.expect("started-7")
	tty.send("\x03")
	// What is typed while the terminal changes hands may be discarded, as on any terminal.
	harness.Eventually(t, 30*time.Second, "the shell answers after Ctrl-C", func(context.Context) error {
		tty.send("echo still-$((1+1))-here\n")
		return tty.shows("still-2-here")
	})
	tty.send("exit 7\n")
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exec -it passed on code %d, want 7", code)
	}
	if _, err := s.try(t.Context(), "", "exec", "shell", "--", "sh", "-c",
		"echo out; echo err >&2; exit 5"); err == nil || !strings.Contains(err.Error(), "code 5") ||
		!strings.Contains(err.Error(), "err") {
		t.Errorf("exec's failure: %v", err)
	}
	if out, err := s.try(t.Context(), "piped", "exec", "-i", "shell", "--", "cat"); err != nil || out != "piped" {
		t.Errorf("exec -i: %q, %v", out, err)
	}
}

func testAttach(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: ` + busyboxImage + `
    stdin: true
    stdinOnce: true
    command: [sh, -c, "while read line; do echo heard $line; done; echo end"]
`)
	s.ready("listener")
	out, err := s.try(t.Context(), "one\ntwo\n", "attach", "-i", "listener")
	if err != nil || !strings.Contains(out, "heard one") || !strings.Contains(out, "heard two") {
		t.Errorf("attach: %q, %v", out, err)
	}
	s.podUntil("listener", 30*time.Second, "ended with its input", func(p *corev1.Pod) error {
		if p.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("pod is %s", p.Status.Phase)
		}
		return nil
	})
}

// testProxies goes through the API server to what is on the node.
func testProxies(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(
		"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n---\n" +
			busyboxPod("web", "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"))
	node := s.ready("web").Spec.NodeName
	for _, row := range []struct{ path, want string }{
		{"/api/v1/nodes/" + node + "/proxy/healthz", "ok"},
		{"/api/v1/nodes/" + node + ":10250/proxy/metrics", "kubelet_node_name{node=\"" + node + "\"} 1"},
		{"/api/v1/namespaces/" + s.name + "/pods/web:8080/proxy/", "hello"},
		{"/metrics", "\nmote_tunnel_open 0\n"},
	} {
		if out := s.kubectl("get", "--raw", row.path); !strings.Contains(out, row.want) {
			t.Errorf("%s answers %.300q, want %q in it", row.path, out, row.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	path := "/api/v1/namespaces/" + s.name + "/services/web/proxy/"
	var out string
	var err error
	// The service's endpoints may come a moment after the pod's being ready.
	for out, err = s.try(ctx, "", "get", "--raw", path); err != nil &&
		ctx.Err() == nil; out, err = s.try(ctx, "", "get", "--raw", path) {
		continue
	}
	if out != "hello\n" {
		t.Errorf("%s answers %q, %v", path, out, err)
	}
}

func testPortForward(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  selector: {app: front}
  ports: [{port: 80, targetPort: 9000}]
---
apiVersion: v1
kind: Pod
metadata: {name: front, labels: {app: front}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.com/podtool:1
    args: [serve, "127.0.0.1:9000"]
`)
	s.ready("front")
	for _, target := range []string{"pod/front", "service/front"} {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		port := "9000"
		if target == "service/front" {
			port = "80"
		}
		cmd := c.command(ctx, "-n", s.name, "port-forward", target, ":"+port)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var problems bytes.Buffer
		cmd.Stderr = &problems
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		first, err := bufio.NewReader(out).ReadString('\n')
		m := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(first)
		if err != nil || m == nil {
			t.Fatalf("port-forward said %q (%v) %s", first, err, problems.String())
		}
		for range 3 {
			if code, body, err := fetch(ctx, http.MethodGet, "http://127.0.0.1:"+m[1]+"/", ""); err != nil ||
				code != http.StatusOK || !strings.HasPrefix(body, "front ") {
				t.Errorf("through port-forward to %s: %d %q %v %s", target, code, body, err, problems.String())
			}
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		cancel()
	}
}

// testCopy sends a folder with a large file and a link there and back.
func testCopy(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(busyboxPod("store", "sleep 3600"))
	s.ready("store")
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	if err := os.MkdirAll(filepath.Join(from, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 8<<20)
	if _, err := io.ReadFull(rand.Reader, big); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"sub/big": big, "small": []byte("hello"), "empty": nil} {
		if err := os.WriteFile(filepath.Join(from, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.kubectl("cp", from, "store:/tmp/there")
	if out := s.exec("store", "cat", "/tmp/there/small"); out != "hello" {
		t.Errorf("in the pod: %q", out)
	}
	s.kubectl("cp", "store:/tmp/there", to)
	back, err := os.ReadFile(filepath.Join(to, "sub/big"))
	if err != nil || !bytes.Equal(back, big) {
		t.Errorf("the large file came back changed (%d bytes, %v)", len(back), err)
	}
}

// testDebug looks into a pod without a shell through an ephemeral container that shares its
// processes.
func testDebug(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.com/shop:1.0
    args: [nodeinfo]
`)
	s.ready("bare")
	out, err := s.try(t.Context(), "", "debug", "bare", "--image="+busyboxImage, "--image-pull-policy=IfNotPresent",
		"--target=main", "--container=look", "--attach=true", "--quiet", "--", "sh", "-c", "ps; echo looked")
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "ephemeral container saw the process", func(context.Context) error {
		// Attaching may come too late for a short program; its log has it all.
		if out = out + s.kubectl("logs", "bare", "-c", "look"); strings.Contains(out, "/shop nodeinfo") &&
			strings.Contains(out, "looked") {
			return nil
		}
		return fmt.Errorf("saw %q", out)
	})
	if n := len(s.pod("bare").Status.EphemeralContainerStatuses); n != 1 {
		t.Errorf("%d ephemeral containers in the status", n)
	}
}
