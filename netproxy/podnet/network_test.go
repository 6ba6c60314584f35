package podnet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
	"github.com/mote-dev/mote/netproxy/nfttool"
)

// eventually waits until check returns "" and fails with its last answer otherwise.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		problem := check()
		if problem == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(problem)
		case <-tick.C:
		}
	}
}

// startNetwork runs a network until stop or the end of the test, and checks then that nothing of it
// goes on.
func startNetwork(t *testing.T, c Config) (n *Network, stop func()) {
	t.Helper()
	c.Logger = zaptest.NewLogger(t)
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
			goleak.VerifyNone(t, before)
		})
	}
	t.Cleanup(stop)
	return n, stop
}

func testConfig(t *testing.T) Config {
	dir := t.TempDir()
	return Config{
		NodeName:        "n1",
		Cluster:         clusterconfig.Config{ClusterCIDRs: prefixes("10.42.0.0/16")},
		LocalServiceIPs: addrs("10.43.0.10"),
		ConfDir:         filepath.Join(dir, "net.d"),
		StateDir:        filepath.Join(dir, "state"),
	}
}

// listedMTU returns the MTU in the network list, or 0.
func listedMTU(c Config) int {
	text, err := os.ReadFile(filepath.Join(c.ConfDir, ConflistName))
	if err != nil {
		return 0
	}
	var list cniConflist
	if json.Unmarshal(text, &list) != nil {
		return 0
	}
	return list.Plugins[0].MTU
}

func TestNetwork_Run_StartsOnLoopbackAndFollowsTheNetwork(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	c := testConfig(t)
	c.Cluster.ServiceCIDRs = prefixes("10.43.0.0/16")
	n, _ := startNetwork(t, c)
	self := Node{Name: "n1", PodCIDRs: prefixes("10.42.3.0/24")}
	n.SetNodes(self, nil)
	<-n.Ready()
	if got := listedMTU(c); got != 1450 {
		t.Errorf("MTU without a network is %d", got)
	}
	if got, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(got) != "1\n" {
		t.Errorf("ip_forward is %q", got)
	}

	// The host reaches services over the bridge the plugin makes.
	route := func(want bool) {
		t.Helper()
		eventually(t, func() string {
			if out := run(t, "ip", "route"); strings.Contains(out, "10.43.0.0/16 dev "+DefaultBridge) != want {
				return out
			}
			return ""
		})
	}
	run(t, "ip", "link", "add", DefaultBridge, "mtu", "1400", "type", "bridge")
	run(t, "ip", "addr", "add", "10.42.3.1/24", "dev", DefaultBridge)
	run(t, "ip", "link", "set", DefaultBridge, "up")
	route(true)

	// A network appears.
	run(t, "ip", "link", "add", "up0", "mtu", "1300", "type", "bridge")
	run(t, "ip", "addr", "add", "192.0.2.5/24", "dev", "up0")
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	eventually(t, func() string {
		if got := listedMTU(c); got != 1280 {
			return fmt.Sprintf("MTU over a link of 1300 is %d", got)
		}
		return ""
	})

	route(false)

	// The bridge follows.
	eventually(t, func() string {
		l, err := netlink.LinkByName(DefaultBridge)
		if err != nil || l.Attrs().MTU != 1280 {
			return fmt.Sprintf("bridge: %v, %v", l, err)
		}
		return ""
	})

	// The node is given another range.
	self.PodCIDRs = prefixes("10.42.9.0/24")
	n.SetNodes(self, nil)
	eventually(t, func() string {
		text, _ := os.ReadFile(filepath.Join(c.ConfDir, ConflistName))
		if !strings.Contains(string(text), "10.42.9.0/24") || strings.Contains(string(text), "10.42.3.0/24") {
			return string(text)
		}
		return ""
	})
}

func TestNetwork_Run_RestoresRulesOthersRemove(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	c := testConfig(t)
	c.CheckInterval = time.Hour // only the kernel's reports may trigger repairs
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	deleted := make(chan struct{})
	var once sync.Once
	n.RulesRemoved = func(name string, whole bool) {
		if name == "kube-proxy" && whole {
			once.Do(func() { close(deleted) })
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.SetNodes(Node{Name: "n1", PodCIDRs: prefixes("10.42.3.0/24")}, nil)
	<-n.Ready()
	want := run(t, "nft", "-s", "list", "table", "inet", Table)
	for _, harm := range []string{"flush ruleset", "delete table inet mote", "flush table inet mote",
		"flush chain inet mote postrouting", "add rule inet mote postrouting drop"} {
		run(t, "nft", harm)
		eventually(t, func() string {
			out, err := nfttool.Run(ctx, "", "-s", "list", "table", "inet", Table)
			if err != nil || out != want {
				return fmt.Sprintf("after %q: %v\n%s", harm, err, out)
			}
			return ""
		})
	}
	run(t, "nft", "add table ip kube-proxy")
	run(t, "nft", "delete table ip kube-proxy")
	select {
	case <-deleted:
	case <-time.After(20 * time.Second):
		t.Fatal("the deletion of another table was not reported")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft", "-s", "list", "table", "inet", Table); got != want {
		t.Errorf("rules did not stay when the network stopped:\n%s", got)
	}
}

func TestFirewalls_ApplyTwiceAndRemove(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	rules := ruleCases[2].rules
	for _, c := range []struct {
		name, tool string
		make       func() firewall
		dump       []string
	}{
		{"nftables", "nft", func() firewall { return newNFTFirewall() }, []string{"nft", "-s", "list", "ruleset"}},
		{"iptables", "iptables", func() firewall { return &iptablesFirewall{masquerade: true} },
			[]string{"iptables-save"}},
		{"ip6tables", "ip6tables", func() firewall { return &iptablesFirewall{masquerade: true} },
			[]string{"ip6tables-save"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			needTool(t, c.tool)
			ctx := context.Background()
			dump := func() string {
				var kept []string
				for line := range strings.Lines(run(t, c.dump[0], c.dump[1:]...)) {
					if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
						kept = append(kept, line)
					}
				}
				return strings.Join(kept, "")
			}
			first := c.make()
			if ok, err := first.Intact(ctx); ok || err != nil {
				t.Fatalf("intact before it was applied: %v, %v", ok, err)
			}
			if err := first.Apply(ctx, rules); err != nil {
				t.Fatal(err)
			}
			want := dump()
			if !strings.Contains(want, "10.42.0.0/16") && !strings.Contains(want, "fd00:42::/56") {
				t.Fatalf("rules are missing:\n%s", want)
			}
			// A new process applies without knowing of the first.
			second := c.make()
			for range 3 {
				if err := second.Apply(ctx, rules); err != nil {
					t.Fatal(err)
				}
			}
			if got := dump(); got != want {
				t.Errorf("rules changed on a second run:\n--- first\n%s--- second\n%s", want, got)
			}
			if ok, err := second.Intact(ctx); !ok || err != nil {
				t.Errorf("intact: %v, %v", ok, err)
			}
			for range 2 {
				if err := second.Remove(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if got := dump(); strings.Contains(strings.ToLower(got), "mote") || strings.Contains(got, "10.42") {
				t.Errorf("left after removal:\n%s", got)
			}
		})
	}
}

func TestIPTablesGuard_OnlyWhereTheHostDrops(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "iptables")
	ctx := context.Background()
	guard := &iptablesFirewall{onlyIfDropping: true}
	rules := ruleCases[0].rules
	if err := guard.Apply(ctx, rules); err != nil {
		t.Fatal(err)
	}
	if ok, err := guard.Intact(ctx); !ok || err != nil {
		t.Fatalf("host without iptables rules: intact %v, %v", ok, err)
	}
	run(t, "iptables", "-P", "FORWARD", "DROP")
	if ok, _ := guard.Intact(ctx); ok {
		t.Fatal("a dropping policy was not noticed")
	}
	if err := guard.Apply(ctx, rules); err != nil {
		t.Fatal(err)
	}
	out := run(t, "iptables", "-S")
	for _, want := range []string{"-A FORWARD -m comment --comment \"mote pod network\" -j MOTE-FORWARD",
		"-A MOTE-FORWARD -s 10.42.0.0/16 -j ACCEPT", "-A MOTE-INPUT -d 10.43.0.10/32 -i mote0 -p udp"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	if ok, err := guard.Intact(ctx); !ok || err != nil {
		t.Errorf("intact: %v, %v", ok, err)
	}
	run(t, "iptables", "-F", "FORWARD")
	if ok, _ := guard.Intact(ctx); ok {
		t.Error("a flushed chain was not noticed")
	}
}

func TestCleanup_RemovesTheKubeletsChains(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "iptables")
	for _, args := range []string{
		"-t filter -N KUBE-FIREWALL", "-t filter -A KUBE-FIREWALL -d 127.0.0.0/8 -j DROP",
		"-t filter -I INPUT -j KUBE-FIREWALL",
		"-t filter -I OUTPUT -j KUBE-FIREWALL", "-t filter -A OUTPUT -p tcp --dport 99 -j DROP",
		"-t mangle -N KUBE-KUBELET-CANARY", "-t mangle -N KUBE-IPTABLES-HINT",
	} {
		run(t, "iptables", strings.Fields(args)...)
	}
	c := testConfig(t)
	for range 2 {
		if err := Cleanup(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
	out := run(t, "iptables-save")
	if strings.Contains(out, "KUBE") || !strings.Contains(out, "-A OUTPUT -p tcp -m tcp --dport 99 -j DROP") {
		t.Errorf("left:\n%s", out)
	}
}

func TestCleanup_RemovesOnlyOurs(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	needTool(t, "nft")
	c := testConfig(t)
	run(t, "nft", "add table ip other")
	run(t, "ip", "link", "add", DefaultBridge, "type", "bridge")
	run(t, "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth1p")
	run(t, "ip", "link", "set", "veth1", "master", DefaultBridge)
	run(t, "ip", "link", "add", "foreign0", "type", "bridge")
	run(t, "ip", "link", "add", "veth2", "type", "veth", "peer", "name", "veth2p")
	run(t, "ip", "link", "set", "veth2", "master", "foreign0")
	n, stop := startNetwork(t, c)
	n.SetNodes(Node{Name: "n1", PodCIDRs: prefixes("10.42.3.0/24")}, nil)
	<-n.Ready()
	stop()
	for range 2 {
		if err := Cleanup(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	all := strings.Join(names, " ")
	if strings.Contains(all, DefaultBridge) || strings.Contains(all, "veth1") || !strings.Contains(all, "foreign0") ||
		!strings.Contains(all, "veth2") {
		t.Errorf("interfaces left: %s", all)
	}
	if got := run(t, "nft", "list", "tables"); !strings.Contains(got, "table ip other") {
		t.Errorf("tables left: %s", got)
	}
	if _, err := os.Stat(filepath.Join(c.ConfDir, ConflistName)); err == nil {
		t.Error("network list is left")
	}
}
