package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

// pair is a server with a node, and an agent on the same network.
type pair struct{ *cluster }

func (p *pair) nodes() []*machine { return []*machine{p.main, p.near} }

// TestNetworkBackend joins two machines by routes instead of a tunnel, and then has the server
// change its mind: the agent has to follow by itself, and its pods go on.
func TestNetworkBackend(t *testing.T) {
	options.NeedMote(t)
	p := &pair{&cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-backend")}}
	p.main = newMachine(t, sandbox.HostConfig{Name: "left", Address: mainIP})
	p.near = newMachine(t, sandbox.HostConfig{Name: "right", Address: nearIP})
	for _, m := range p.nodes() {
		m.give(t, filepath.Join(options.Images, "podtool.tar"), filepath.Join(dataDir(), "agent/images/podtool.tar"))
	}
	inOrder(t, p, []step[*pair]{
		{"HostGateway", testHostGateway},
		{"ChangedToTunnel", testChangedToTunnel},
		{"ChangedToNone", testChangedToNone},
	})
}

func (p *pair) launchServer(t *testing.T, backend string) time.Time {
	t.Helper()
	begin := time.Now()
	p.main.launch(t, "server", "--kubeconfig-output", p.kubeconfig, "--network-backend", backend)
	return begin
}

func testHostGateway(t *testing.T, p *pair) {
	begin := p.launchServer(t, "host-gw")
	p.takeKubeconfig(t)
	p.readyWithin(t, p.main, begin, 60*time.Second)
	token := strings.TrimSpace(p.main.mote(t, "token", "create", "--kubeconfig", p.kubeconfig, "--quiet"))
	p.near.join(t, p.cluster, "--server", "https://"+mainIP+":6443", "--token-file", p.near.write(t, "token", token))
	p.kubectl(t, "create", "namespace", space)
	p.apply(t, echoManifest)
	harness.Eventually(t, 60*time.Second, "pods ready", func(ctx context.Context) error {
		for _, m := range p.nodes() {
			pod, err := p.findPod(ctx, m, "echo")
			if err != nil {
				return err
			}
			if err := harness.PodReady(&pod); err != nil {
				return err
			}
		}
		return nil
	})
	p.joined(t, func(other *machine, pods string) string { return pods + " via " + other.Address() + " dev eth0" },
		false)
	p.reached(t)
	for _, m := range p.nodes() {
		if out := harness.Output(t, m.Host, "ip", "-o", "link", "show", "type", "bridge"); !strings.Contains(out,
			" mtu 1500 ") {
			t.Errorf("no tunnel takes anything from packets of %s: %s", m.Name(), out)
		}
	}
}

// testChangedToTunnel starts the server alone with another backend.
func testChangedToTunnel(t *testing.T, p *pair) {
	var before []int
	for _, m := range p.nodes() {
		before = append(before, m.echoes()...)
	}
	p.main.Stop(t)
	p.launchServer(t, "vxlan")
	p.joined(t, func(_ *machine, pods string) string {
		first, _, _ := strings.Cut(pods, "/")
		return pods + " via " + first + " dev "
	}, true)
	p.reached(t)
	if said := "network-backend changed from host-gw to vxlan; starting again, containers go on"; !strings.Contains(
		p.near.said(), said) {
		t.Errorf("the agent does not say %q", said)
	}
	var after []int
	for _, m := range p.nodes() {
		after = append(after, m.echoes()...)
	}
	if !slices.Equal(before, after) {
		t.Errorf("processes are %v, before %v", after, before)
	}
}

// testChangedToNone wants nothing left of what other backends made, and the agent to start like
// that when no server says so.
func testChangedToNone(t *testing.T, p *pair) {
	p.main.Stop(t)
	p.launchServer(t, "none")
	nothing := func(*machine, string) string { return "" }
	p.joined(t, nothing, false)
	p.main.Kill(t)
	p.near.Kill(t)
	p.near.launch(t, "agent")
	harness.Eventually(t, 60*time.Second, "agent's network", func(context.Context) error {
		if err := p.near.Alive(); err != nil {
			return err
		}
		if !strings.Contains(p.near.said(), "network ready") {
			return errors.New("it does not say so")
		}
		return nil
	})
	if err := wired(t.Context(), p.near, "", "10.42.", false); err != nil {
		t.Error(err)
	}
}

// joined waits until each machine's kernel knows of the other's pods what route says, which is
// nothing if that is empty, and has a tunnel or not.
func (p *pair) joined(t *testing.T, route func(other *machine, pods string) string, tunnel bool) {
	t.Helper()
	for i, m := range p.nodes() {
		other := p.nodes()[1-i]
		harness.Eventually(t, 60*time.Second, m.Name()+" and pods of "+other.Name(), func(ctx context.Context) error {
			node, err := p.client.CoreV1().Nodes().Get(ctx, other.Name(), metav1.GetOptions{})
			if err != nil {
				return errors.Join(err, p.main.Alive(), m.Alive())
			}
			return wired(ctx, m, route(other, node.Spec.PodCIDR), node.Spec.PodCIDR, tunnel)
		})
	}
}

// wired is an error unless the only route of a machine's to other nodes' pods is the one wanted,
// which is none if that is empty.
func wired(ctx context.Context, m *machine, route, pods string, tunnel bool) error {
	routes, err := m.Command(ctx, "ip", "route").CombinedOutput()
	if err != nil {
		return fmt.Errorf("routes of %s: %w: %s", m.Name(), err, routes)
	}
	// Names of interfaces follow from where mote's data are.
	tunnels, err := m.Command(ctx, "ip", "-o", "link", "show", "type", "vxlan").CombinedOutput()
	if err != nil {
		return fmt.Errorf("tunnels of %s: %w: %s", m.Name(), err, tunnels)
	}
	var have []string
	for line := range strings.Lines(string(routes)) {
		// The machine's own are on its bridge.
		if strings.HasPrefix(line, pods) && strings.Contains(line, " via ") {
			have = append(have, line)
		}
	}
	switch {
	case len(have) != min(1, len(route)), len(have) == 1 && !strings.HasPrefix(have[0], route):
		return fmt.Errorf("routes of %s to pods of others are %q, want %q", m.Name(), have, route)
	case len(tunnels) > 0 != tunnel:
		return fmt.Errorf("tunnels of %s are %q, want one: %v", m.Name(), tunnels, tunnel)
	}
	return nil
}

// reached wants the pods to reach each other, under their own addresses.
func (p *pair) reached(t *testing.T) {
	t.Helper()
	for i, from := range p.nodes() {
		to := p.nodes()[1-i]
		source, target, pid := p.podOn(t, from, "echo"), p.podOn(t, to, "echo"), only(t, from.echoes())
		harness.Eventually(t, 15*time.Second, "pod on "+to.Name()+" from "+from.Name(),
			func(ctx context.Context) error {
				got, err := from.inPod(ctx, pid, options.podtool, "get", "http://"+target.Status.PodIP+":8080/")
				if want := target.Name + " " + source.Status.PodIP; err == nil && got != want {
					err = fmt.Errorf("%w: answered %q, want %q", harness.ErrStop, got, want)
				}
				return err
			})
	}
}
