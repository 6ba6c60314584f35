package podnet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/mote-dev/mote/internal/netnstest"
)

// TestNetwork_Run_PluginsAcceptTheList attaches two pods with the real plugins: they reach each
// other, the outside sees the node's address, and a mapped port leads to a pod. It needs the
// plugins that scripts/bundle builds.
func TestNetwork_Run_PluginsAcceptTheList(t *testing.T) {
	plugins, err := filepath.Abs("../../build/bundle/bin")
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("MOTE_CNI_BIN"); dir != "" {
		plugins = dir
	}
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		t.Skipf("needs the bundled CNI plugins: %v", err)
	}
	if !netnstest.Enter(t) {
		return
	}
	for _, firewall := range []Firewall{FirewallNFTables, FirewallIPTables} {
		t.Run(string(firewall), func(t *testing.T) { testPlugins(t, plugins, firewall) })
	}
}

func testPlugins(t *testing.T, plugins string, firewall Firewall) {
	// The plugins go through namespaces by thread; ours must be the one they find.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	name := func(s string) string { return fmt.Sprintf("mote-%s-%d-%s", firewall, os.Getpid(), s) }
	addNamespace := func(n string) string {
		run(t, "ip", "netns", "add", n)
		t.Cleanup(func() { run(t, "ip", "netns", "del", n) })
		return n
	}
	// The outside: a host that knows nothing of pods.
	outside := addNamespace(name("out"))
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside)
	t.Cleanup(func() { run(t, "ip", "link", "del", "up0") })
	run(t, "ip", "addr", "add", "192.0.2.5/24", "dev", "up0")
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "route", "replace", "default", "via", "192.0.2.1")
	run(t, "ip", "-n", outside, "addr", "add", "192.0.2.1/24", "dev", "eth0")
	run(t, "ip", "-n", outside, "link", "set", "eth0", "up")

	c := testConfig(t)
	c.Firewall, c.BinDir = firewall, plugins
	n, stop := startNetwork(t, c)
	n.SetNodes(Node{Name: "n1", PodCIDRs: prefixes("10.42.3.0/24")}, nil)
	<-n.Ready()

	ctx := context.Background()
	list, err := libcni.ConfListFromFile(filepath.Join(c.ConfDir, ConflistName))
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{plugins}, t.TempDir(), nil)
	attach := func(pod string, args map[string]any) *libcni.RuntimeConf {
		addNamespace(pod)
		rt := &libcni.RuntimeConf{
			ContainerID:    pod,
			NetNS:          "/run/netns/" + pod,
			IfName:         "eth0",
			CapabilityArgs: args,
		}
		if _, err := cni.AddNetworkList(ctx, list, rt); err != nil {
			t.Fatalf("attach %s: %v", pod, err)
		}
		return rt
	}
	a, b := name("a"), name("b")
	rtA := attach(a, nil)
	rtB := attach(b,
		map[string]any{"portMappings": []map[string]any{{"hostPort": 8088, "containerPort": 80, "protocol": "tcp"}}})
	if err := cni.CheckNetworkList(ctx, list, rtB); err != nil {
		t.Errorf("check: %v", err)
	}
	if out := run(t, "ip", "-n", a, "addr", "show", "dev", "eth0"); !strings.Contains(out, "10.42.3.2/24") ||
		!strings.Contains(out, "mtu 1450") {
		t.Errorf("first pod:\n%s", out)
	}
	// Who asks is told the address it comes from. Python is everywhere a developer is, but not in
	// the product's way.
	serve := func(ns, port string) {
		needTool(t, "python3")
		startTool(t, "ip", "netns", "exec", ns, "python3", "-c", `
import socket,sys
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(("0.0.0.0",`+port+`)); s.listen()
while True:
    c,a=s.accept(); c.sendall(a[0].encode()); c.close()`)
	}
	serve(b, "80")
	serve(outside, "81")
	ask := func(ns, addr, port string) string {
		out := ""
		eventually(t, func() string {
			got, err := tool("ip", "netns", "exec", ns, "timeout", "3", "bash", "-c", "cat < /dev/tcp/"+addr+"/"+port)
			if err != nil {
				return got
			}
			out = got
			return ""
		})
		return out
	}
	if got := ask(a, "10.42.3.3", "80"); got != "10.42.3.2" {
		t.Errorf("pod to pod: seen as %s", got)
	}
	if got := ask(a, "192.0.2.1", "81"); got != "192.0.2.5" {
		t.Errorf("pod to the outside: seen as %s", got)
	}
	if got := ask(outside, "192.0.2.5", "8088"); got != "192.0.2.1" {
		t.Errorf("outside to a mapped port: seen as %s", got)
	}

	// A client that goes on sending from one port follows a UDP port from a pod to what replaces
	// it: a program of the host, for which no plugin runs, and another pod.
	answerUDP := func(port, answer string, in ...string) {
		needTool(t, "python3")
		args := append(in, "python3", "-c", `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("0.0.0.0",`+port+`))
while True:
    d,a=s.recvfrom(9); s.sendto(b"`+answer+`",a)`)
		startTool(t, args[0], args[1:]...)
	}
	send := func(want string) {
		t.Helper()
		eventually(t, func() string {
			got, _ := tool("ip", "netns", "exec", outside, "python3", "-c", `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("0.0.0.0",4000)); s.settimeout(0.5)
s.sendto(b"?",("192.0.2.5",5300)); print(s.recv(9).decode(),end="")`)
			if got != want {
				return fmt.Sprintf("answered by %q, want %q", got, want)
			}
			return ""
		})
	}
	udp := map[string]any{"portMappings": []map[string]any{{"hostPort": 5300, "containerPort": 53, "protocol": "udp"}}}
	first := name("u1")
	rtFirst := attach(first, udp)
	answerUDP("53", "pod 1", "ip", "netns", "exec", first)
	send("pod 1")
	if err := cni.DelNetworkList(ctx, list, rtFirst); err != nil {
		t.Errorf("detach: %v", err)
	}
	answerUDP("5300", "host")
	send("host")
	second := name("u2")
	rtSecond := attach(second, udp)
	answerUDP("53", "pod 2", "ip", "netns", "exec", second)
	send("pod 2")

	for _, rt := range []*libcni.RuntimeConf{rtA, rtB, rtSecond} {
		if err := cni.DelNetworkList(ctx, list, rt); err != nil {
			t.Errorf("detach: %v", err)
		}
	}
	stop()
	if err := Cleanup(ctx, c); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "nft", "list", "ruleset"); strings.Contains(out, "10.42.") ||
		strings.Contains(out, "cni_hostport") || strings.Contains(out, "CNI-") {
		t.Errorf("left:\n%s", out)
	}
	if out := run(t, "ip", "link"); strings.Contains(out, DefaultBridge) || strings.Count(out, "veth") > 1 {
		t.Errorf("left:\n%s", out)
	}
}
