package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-dev/mote/test/tools/harness"
)

// person is somebody with a kubeconfig of their own.
type person struct {
	*space
	file string
}

// issue makes a kubeconfig as an administrator would.
func (s *space) issue(user string, args ...string) person {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), user+".yaml")
	out := runMote(s.t,
		append([]string{"kubeconfig", "create", "--kubeconfig", s.kubeconfig, "--user", user, "--ttl", "1h", "--output",
			file}, args...)...)
	if !strings.Contains(out, "rolebinding") {
		s.t.Errorf("not said how rights are given: %s", out)
	}
	info, err := os.Stat(file)
	if err != nil {
		s.t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		s.t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
	}
	return person{space: s, file: file}
}

// command is kubectl as that person.
func (p person) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, options.Mote,
		append([]string{"kubectl", "--kubeconfig", p.file, "-n", p.name}, args...)...)
}

func (p person) say(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	out, err := p.command(ctx, args...).CombinedOutput()
	return string(out), err
}

// works wants a command to succeed soon: rights take a moment to be known.
func (p person) works(args ...string) {
	p.t.Helper()
	harness.Eventually(p.t, 20*time.Second, filepath.Base(p.file)+": kubectl "+strings.Join(args, " "),
		func(context.Context) error {
			if out, err := p.say(args...); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
}

// refused wants every kind of request to be refused as revoked, at once.
func (p person) refused() {
	p.t.Helper()
	for _, args := range [][]string{{"get", "pods"}, {"auth", "whoami"}, {"get", "--raw", "/version"},
		{"exec", "talker", "--", "true"}, {"logs", "talker"}} {
		if out, err := p.say(args...); err == nil || !strings.Contains(out, "was revoked at 20") {
			p.t.Errorf("%s, kubectl %s: %v, %s; want it refused as revoked", filepath.Base(p.file),
				strings.Join(args, " "), err, out)
		}
	}
}

// running is a command that goes on until it is ended.
type running struct {
	what  string
	lines chan string
	ended chan error
}

// follow starts a command and waits for its first line.
func (p person) follow(args ...string) *running {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	p.t.Cleanup(cancel)
	cmd := p.command(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	// exec reads what it sends on; its end must not be what ends it.
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = in.Close() })
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	r := &running{what: "kubectl " + strings.Join(args, " "), lines: make(chan string, 1000),
		ended: make(chan error, 1)}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			select {
			case r.lines <- lines.Text():
			default:
			}
		}
		err := cmd.Wait()
		r.ended <- fmt.Errorf("ended: %w: %s", errors.Join(err, harness.ErrStop), errOut.String())
	}()
	select {
	case <-r.lines:
	case err := <-r.ended:
		p.t.Fatalf("%s: %v", r.what, err)
	case <-time.After(30 * time.Second):
		p.t.Fatalf("%s said nothing for 30 s", r.what)
	}
	return r
}

// ends wants the command to have been ended within a moment of begin.
func (r *running) ends(t *testing.T, begin time.Time) {
	t.Helper()
	select {
	case <-r.ended:
		t.Logf("%s ended after %v", r.what, time.Since(begin).Round(time.Millisecond))
	case <-time.After(30 * time.Second):
		t.Errorf("%s still runs 30 s after the revocation", r.what)
	}
}

// goesOn wants another line of the command.
func (r *running) goesOn(t *testing.T) {
	t.Helper()
	for len(r.lines) > 0 {
		<-r.lines
	}
	select {
	case <-r.lines:
	case err := <-r.ended:
		t.Errorf("%s: %v", r.what, err)
	case <-time.After(30 * time.Second):
		t.Errorf("%s said nothing more for 30 s", r.what)
	}
}

// moteRefuses runs a command of mote's that must fail, and wants something said.
func moteRefuses(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), options.Mote, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), want) || strings.Count(string(out), "\n") != 1 {
		t.Errorf("mote %s: %v, %q; want one line with %q", strings.Join(args, " "), err, out, want)
	}
}

// testCertificates gives people kubeconfigs and takes them away again.
func testCertificates(t *testing.T, c *cluster) {
	s := c.namespace(t)
	s.apply(busyboxPod("talker", "while true; do echo tick; sleep 0.2; done"))
	s.ready("talker")
	certificate := func(verb string, args ...string) string {
		t.Helper()
		return runMote(t, append([]string{"certificate", verb, "--kubeconfig", s.kubeconfig}, args...)...)
	}

	leaked, spare := s.issue("erika", "--group", "readers", "--group", "night-shift"), s.issue("erika")
	max := s.issue("max", "--group", "readers")
	if out, err := leaked.say("auth", "whoami", "-o",
		"jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); err != nil ||
		out != `erika ["readers","night-shift","system:authenticated"]` &&
			out != `erika ["night-shift","readers","system:authenticated"]` {
		t.Errorf("whoami: %q, %v", out, err)
	}
	if out, err := leaked.say("get", "pods"); err == nil || !strings.Contains(out, `User "erika" cannot list`) {
		t.Errorf("without a role: %q, %v", out, err)
	}
	s.apply(`
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [pods, pods/log, pods/exec, configmaps], verbs: [get, list, watch, create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: readers}, {apiGroup: rbac.authorization.k8s.io, kind: User, name: erika}]
`)
	for _, p := range []person{leaked, spare, max} {
		p.works("get", "pods")
	}
	if out, err := leaked.say("get", "secrets"); err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("beyond the role: %q, %v", out, err)
	}
	if out := s.kubectl("get", "csr"); strings.Contains(out, "erika") ||
		strings.Contains(out, "kube-apiserver-client ") {
		t.Errorf("certificate requests stayed: %s", out)
	}

	watch, logs := leaked.follow("get", "pods", "-w"), leaked.follow("logs", "-f", "talker")
	shell := leaked.follow("exec", "-i", "talker", "--", "sh", "-c", "while echo tick; do sleep 0.2; done")
	others := []*running{max.follow("logs", "-f", "talker"),
		max.follow("exec", "-i", "talker", "--", "sh", "-c", "while echo tick; do sleep 0.2; done")}
	out := certificate("revoke", "--reason", "left in a train", leaked.file)
	begin := time.Now()
	if !strings.Contains(out, "revoked certificate") || !strings.Contains(out, "of erika") {
		t.Errorf("revoke said %q", out)
	}
	for _, r := range []*running{watch, logs, shell} {
		r.ends(t, begin)
	}
	leaked.refused()
	for _, r := range others {
		r.goesOn(t)
	}
	// Another certificate of the same user is not the one that leaked.
	spare.works("get", "pods")
	if out := certificate("list"); !strings.Contains(out, "of erika") || !strings.Contains(out, "left in a train") ||
		!strings.Contains(out, "kubernetes-admin") {
		t.Errorf("list: %s", out)
	}

	certificate("revoke", "--user", "erika")
	spare.refused()
	// The signer dates back: without being named, this one would be refused as well.
	fresh := s.issue("erika")
	fresh.works("get", "pods")
	spare.refused()
	max.works("get", "pods")

	certificate("unrevoke", "--user", "erika")
	spare.works("get", "pods")
	leaked.refused()
	certificate("unrevoke", leaked.file)
	leaked.works("get", "pods")

	for _, row := range []struct {
		said string
		args []string
	}{
		{"cluster-admin", []string{"kubeconfig", "create", "--user", "x", "--group", "system:masters"}},
		{"belong to Kubernetes", []string{"kubeconfig", "create", "--user", "system:node:x"}},
		{"belong to Kubernetes", []string{"kubeconfig", "create", "--user", "x", "--group", "system:nodes"}},
		{"too short", []string{"kubeconfig", "create", "--user", "x", "--ttl", "9m"}},
		{"no duration", []string{"kubeconfig", "create", "--user", "x", "--ttl", "soon"}},
		{"--force", []string{"kubeconfig", "create", "--user", "x", "--output", max.file}},
		{"--user", []string{"kubeconfig", "create"}},
		{"is not hexadecimal", []string{"certificate", "revoke", "--serial", "xyz"}},
		{"one at a time", []string{"certificate", "revoke", "--serial", "12", "--user", "x"}},
		{"certificate revoke " + s.kubeconfig, []string{"certificate", "revoke"}},
		{"the server itself", []string{"certificate", "revoke", "--user", "front-proxy-client"}},
		{"is a server's own", []string{"certificate", "revoke", "--node", s.node}},
		{"has tokens", []string{"certificate", "revoke", "--user", "system:serviceaccount:a:b"}},
		{"the server's own",
			[]string{"certificate", "revoke",
				"@" + filepath.Join(s.dataDir, "server", "tls", "apiserver-kubelet-client.crt")}},
		{"nothing of the kind", []string{"certificate", "unrevoke", "--node", "nobody"}},
	} {
		args := append([]string{row.args[0], row.args[1], "--kubeconfig", s.kubeconfig}, row.args[2:]...)
		if last := len(args) - 1; strings.HasPrefix(args[last], "@") {
			args[last] = args[last][1:]
		}
		moteRefuses(t, row.said, args...)
	}
}

// testAdminRevoked revokes the administrator's kubeconfig with itself: what leaked is refused, and
// who owns the machine gets a new one.
func testAdminRevoked(t *testing.T, c *cluster) {
	old, err := os.ReadFile(c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	stolen := person{space: &space{cluster: c, t: t, name: "default"}, file: filepath.Join(t.TempDir(), "stolen.yaml")}
	if err := os.WriteFile(stolen.file, old, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{c.kubeconfig}, {"--user", "kubernetes-admin"}} {
		if old, err = os.ReadFile(c.kubeconfig); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		out := runMote(t, append([]string{"certificate", "revoke", "--kubeconfig", c.kubeconfig}, args...)...)
		t.Logf("after %v: %s", time.Since(begin).Round(time.Millisecond), out)
		if !strings.Contains(out, "new administrator's kubeconfig to "+c.kubeconfig) {
			t.Errorf("revoke said %q", out)
		}
		if now, err := os.ReadFile(c.kubeconfig); err != nil || bytes.Equal(now, old) {
			t.Errorf("the kubeconfig is the same as before, %v", err)
		}
		c.kubectl(t, "get", "nodes")
		stolen.refused()
	}
	// The other tests go on with what the administrator has now.
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = c.config.QPS, c.config.Burst
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c.config, c.client = config, client
	info, err := os.Stat(c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the new kubeconfig has mode %v, want 0600", info.Mode().Perm())
	}
}
