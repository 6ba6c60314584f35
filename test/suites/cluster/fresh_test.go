package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// young is how old a node may be for the test to say something: what it has just heard it must have
// kept.
const young = 30 * time.Second

// fresh is a server without a node, and an agent that has just joined.
type fresh struct {
	server
	agent *machine
}

// TestFreshAgent takes the server away from an agent whose first pods have just started, and kills
// the agent at once.
func TestFreshAgent(t *testing.T) {
	options.NeedMote(t)
	f := &fresh{server: server{cluster: &cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-fresh")}}}
	f.main = newMachine(t, sandbox.HostConfig{Name: "home", Address: mainIP})
	f.agent = newMachine(t, sandbox.HostConfig{Name: "fresh", Address: nearIP})
	inOrder(t, f, []step[*fresh]{
		{"Killed", testFreshKilled},
		{"PowerCut", testFreshPowerCut},
		{"ServerBack", testFreshServerBack},
		{"StoppedAfterChange", testFreshStopped},
	})
}

func (f *fresh) launchServer(t *testing.T) {
	t.Helper()
	begin := time.Now()
	f.main.launch(t, "server", "--disable-agent", "--kubeconfig-output", f.kubeconfig)
	f.ready(t, begin)
}

// running waits until both pods' processes are there.
func (f *fresh) running(t *testing.T, within time.Duration) {
	t.Helper()
	begin := time.Now()
	harness.Eventually(t, within, "pods run", func(context.Context) error {
		if e, s := len(f.agent.echoes()), len(f.agent.sleepers()); e != 1 || s != 1 {
			return errors.Join(f.agent.Alive(), fmt.Errorf("%d and %d processes", e, s))
		}
		return nil
	})
	t.Logf("pods run after %v", time.Since(begin).Round(time.Millisecond))
}

// ownPods are the uids of the agent's daemon pods.
func (f *fresh) ownPods(t *testing.T) []string {
	t.Helper()
	var uids []string
	for _, app := range []string{"echo", "talk"} {
		uids = append(uids, string(f.podOn(t, f.agent, app).UID))
	}
	return uids
}

// testFreshKilled joins an agent and, as soon as containers run, kills the server and then the
// agent. A container that dies meanwhile has to be started again by an agent which has nothing but
// what it kept.
func testFreshKilled(t *testing.T, f *fresh) {
	f.launchServer(t)
	f.kubectl(t, "create", "namespace", space)
	f.apply(t, manifest)
	for _, archive := range []string{"busybox.tar", "podtool.tar"} {
		f.agent.give(t, filepath.Join(options.Images, archive), filepath.Join(dataDir(), "agent/images", archive))
	}
	token := strings.TrimSpace(f.main.mote(t, "token", "create", "--kubeconfig", f.kubeconfig, "--quiet"))
	f.agent.launch(t, "agent", "--server", "https://"+mainIP+":6443", "--token-file", f.agent.write(t, "token", token))
	f.running(t, 90*time.Second)
	node, err := f.client.CoreV1().Nodes().Get(t.Context(), f.agent.Name(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.main.Kill(t)
	f.agent.Kill(t)
	age := time.Since(node.CreationTimestamp.Time)
	t.Logf("the node was %v old", age.Round(time.Second))
	if age > young {
		t.Errorf("the node was %v old: nothing was young any more, which this is about", age)
	}

	echoes := f.agent.echoes()
	if err := syscall.Kill(only(t, f.agent.sleepers()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.agent.launch(t, "agent")
	f.running(t, 60*time.Second)
	if now := f.agent.echoes(); !slices.Equal(now, echoes) {
		t.Errorf("processes are %v, before %v", now, echoes)
	}
}

// testFreshPowerCut wants all of it to come back after a boot, still without a server.
func testFreshPowerCut(t *testing.T, f *fresh) {
	f.agent.reboot(t)
	if n := len(f.agent.echoes()) + len(f.agent.sleepers()); n != 0 {
		t.Fatalf("%d processes outlived the power cut", n)
	}
	f.agent.launch(t, "agent")
	f.running(t, 60*time.Second)
}

// testFreshServerBack wants the pods that were started without a server to be the server's.
func testFreshServerBack(t *testing.T, f *fresh) {
	processes := append(f.agent.echoes(), f.agent.sleepers()...)
	begin := time.Now()
	f.launchServer(t)
	t.Logf("the agent was Ready again %v after the server's start",
		f.readyWithin(t, f.agent, begin, 90*time.Second).Round(time.Millisecond))
	harness.Eventually(t, 60*time.Second, "pods ready", func(ctx context.Context) error {
		for _, app := range []string{"echo", "talk"} {
			pod, err := f.findPod(ctx, f.agent, app)
			if err != nil {
				return err
			}
			if err := harness.PodReady(&pod); err != nil {
				return err
			}
		}
		return nil
	})
	if now := append(f.agent.echoes(), f.agent.sleepers()...); !slices.Equal(now, processes) {
		t.Errorf("processes are %v, before %v", now, processes)
	}
}

// testFreshStopped makes services until the agent keeps their changes only now and then, stops the
// agent in order once it knows the last one, and takes the server away: what the agent knew it has
// to know again.
func testFreshStopped(t *testing.T, f *fresh) {
	pods := f.ownPods(t)
	var last string
	reach := func(ctx context.Context) error {
		name := last + "." + space + ".svc.cluster.local"
		pid := only(t, f.agent.echoes())
		said, err := f.agent.inPod(ctx, pid, "busybox", "nslookup", "-type=a", name, clusterDNS)
		if err != nil {
			return err
		}
		service, err := serviceIn(said)
		if err != nil {
			return err
		}
		got, err := f.agent.inPod(ctx, pid, options.podtool, "get", "http://"+service+"/")
		if err == nil && !strings.HasPrefix(got, "echo-") {
			err = fmt.Errorf("answered %q", got)
		}
		return err
	}
	for i := range 8 {
		last = fmt.Sprintf("late-%d", i)
		f.apply(t, fmt.Sprintf(
			"{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}}", last))
		harness.Eventually(t, 30*time.Second, "service and name of "+last, reach)
	}
	f.agent.Stop(t)
	f.main.Kill(t)
	f.agent.launch(t, "agent")
	harness.Eventually(t, 60*time.Second, "agent runs", func(context.Context) error {
		if err := f.agent.Alive(); err != nil {
			return err
		}
		if said := f.agent.said(); !strings.Contains(said, "network ready") ||
			!strings.Contains(said, "DNS knows the names of the cluster") {
			return errors.New("it does not say so")
		}
		return nil
	})
	harness.Always(t, time.Now().Add(5*time.Second), "service and name of "+last+" without a server", reach)

	f.launchServer(t)
	f.readyWithin(t, f.agent, time.Now(), 90*time.Second)
	if now := f.ownPods(t); !slices.Equal(now, pods) {
		t.Errorf("pods are %v, before %v", now, pods)
	}
}

// serviceIn reads an address of a service from what nslookup says.
func serviceIn(said string) (string, error) {
	for line := range strings.Lines(said) {
		if address, ok := strings.CutPrefix(strings.TrimSpace(line), "Address: "); ok &&
			strings.HasPrefix(address, "10.43.") && !strings.HasPrefix(address, clusterDNS) {
			return address, nil
		}
	}
	return "", fmt.Errorf("nslookup says %q", said)
}

// give copies a file of the sandbox's to the machine's disk.
func (m *machine) give(t *testing.T, from, to string) {
	t.Helper()
	to = m.Path(to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(errors.Join(err, out.Close()))
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
