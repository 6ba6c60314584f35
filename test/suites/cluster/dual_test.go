package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-dev/mote/test/tools/harness"
	"github.com/mote-dev/mote/test/tools/sandbox"
)

const (
	leftIP, leftIP6, rightIP, rightIP6 = "192.168.77.41", "fd77::41", "192.168.77.42", "fd77::42"
	firstIP, firstIP6                  = "192.168.77.43", "fd77::43"
	onlyIP6, joinedIP6                 = "fd77::44", "fd77::45"
	plainIP                            = "192.168.77.46"
	// What servers are given.
	podRange, podRange6, serviceRange, serviceRange6 = "10.42.0.0/16", "fd42::/56", "10.43.0.0/16", "fd43::/112"
	clusterDNS6                                      = "fd43::a"
)

// dualManifest has a pod on every machine, and of both families a service with addresses and one
// without.
const dualManifest = echoManifest + `---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080, nodePort: 30092}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports: [{port: 8080}]
`

// needIPv6 skips a test on a kernel that cannot do what it is about.
func needIPv6(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip(
			"the kernel has no IPv6: /proc/net/if_inet6 is missing (built without CONFIG_IPV6, or booted with ipv6.disable=1)")
	}
	// A new namespace begins with what is the default, not with what its maker has set.
	if off, err := readFile("/proc/sys/net/ipv6/conf/default/disable_ipv6"); err != nil || off != "0" {
		t.Skipf("IPv6 is switched off: net.ipv6.conf.default.disable_ipv6 is %q (%v)", off, err)
	}
}

// TestDualStack wants of IPv6, in a cluster of two machines that began with both families, whatever
// there is of IPv4.
func TestDualStack(t *testing.T) {
	options.NeedMote(t)
	needIPv6(t)
	c := &cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-dual")}
	c.main = newMachine(t, sandbox.HostConfig{Name: "left", Address: leftIP, Address6: leftIP6})
	c.near = newMachine(t, sandbox.HostConfig{Name: "right", Address: rightIP, Address6: rightIP6})
	for i, step := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"Join", testDualJoin},
		{"Pods", testDualPods},
		{"Services", testDualServices},
		{"Names", testDualNames},
		{"Outside", testDualOutside},
		{"Policy", testDualPolicy},
		{"Refused", testDualRefused},
	} {
		begin := time.Now()
		ok := t.Run(step.name, func(t *testing.T) {
			defer func() {
				if t.Failed() && c.client != nil {
					c.explain(t)
				}
			}()
			step.run(t, c)
		})
		t.Logf("%s took %v", step.name, time.Since(begin).Round(100*time.Millisecond))
		if !ok && i < 2 {
			t.Fatalf("what follows would say nothing of its own; see the logs in %s", options.Artifacts)
		}
	}
}

// testDualJoin makes the cluster as the documentation says, and wants both nodes to have two of
// everything.
func testDualJoin(t *testing.T, c *cluster) {
	for _, m := range c.machines() {
		m.give(t, filepath.Join(options.Images, "podtool.tar"), filepath.Join(dataDir(), "agent/images/podtool.tar"))
	}
	begin := time.Now()
	c.main.launch(t, "server", "--kubeconfig-output", c.kubeconfig,
		"--cluster-cidr", podRange+","+podRange6, "--service-cidr", serviceRange+","+serviceRange6, "--node-ip",
		leftIP+","+leftIP6)
	c.takeKubeconfig(t)
	t.Logf("server ready after %v", c.readyWithin(t, c.main, begin, 60*time.Second).Round(time.Millisecond))
	token := strings.TrimSpace(c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--quiet"))
	// By the IPv6 address, which is none of those that every certificate has.
	c.near.join(t, c, "--server", "https://"+net.JoinHostPort(leftIP6, "6443"), "--token-file",
		c.near.write(t, "token", token), "--node-ip", rightIP+","+rightIP6)

	for _, m := range c.machines() {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), m.Name(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		checkFamilies(t, "pod ranges of node "+m.Name(), node.Spec.PodCIDRs, podRange, podRange6)
		var internal []string
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				internal = append(internal, a.Address)
			}
		}
		if want := []string{m.Address(), m.Address6()}; !slices.Equal(internal, want) {
			t.Errorf("node %s has the addresses %v, want %v", m.Name(), internal, want)
		}
	}
	c.kubectl(t, "create", "namespace", space)
	c.apply(t, dualManifest)
	c.echoesReady(t, 2)
}

// echoesReady waits until so many pods answer.
func (c *cluster) echoesReady(t *testing.T, want int) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "pods ready", func(ctx context.Context) error {
		pods, err := c.pods(ctx, "app=echo")
		if err != nil {
			return err
		}
		if len(pods) != want {
			return fmt.Errorf("%d pods, want %d", len(pods), want)
		}
		for _, p := range pods {
			if err := harness.PodReady(&p); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkFamilies wants one address or range in each of the ranges, in their order.
func checkFamilies(t *testing.T, what string, got []string, ranges ...string) {
	t.Helper()
	if len(got) != len(ranges) {
		t.Errorf("%s are %v, want one in each of %v", what, got, ranges)
		return
	}
	for i, text := range got {
		address, _, _ := strings.Cut(text, "/")
		if ip, err := netip.ParseAddr(address); err != nil || !netip.MustParsePrefix(ranges[i]).Contains(ip) {
			t.Errorf("%s are %v, want one in each of %v", what, got, ranges)
		}
	}
}

// addresses are those of a pod.
func addresses(p corev1.Pod) []string {
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

// get asks a page of podtool's from within the pod of a machine; it is answered with a pod's name
// and the address of who asked.
func (c *cluster) get(ctx context.Context, from *machine, host, port string) (name, client string, err error) {
	pods := from.echoes()
	if len(pods) != 1 {
		return "", "", fmt.Errorf("%d processes on %s, want one", len(pods), from.Name())
	}
	got, err := from.inPod(ctx, pods[0], options.podtool, "get", "http://"+net.JoinHostPort(host, port)+"/")
	name, client, _ = strings.Cut(got, " ")
	return name, client, err
}

// testDualPods goes from every pod to every pod by each of its addresses, and wants the one who
// asks to be seen as what it is.
func testDualPods(t *testing.T, c *cluster) {
	for _, m := range c.machines() {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), m.Name(), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod := c.podOn(t, m, "echo")
		checkFamilies(t, "addresses of the pod on "+m.Name(), addresses(pod), node.Spec.PodCIDRs...)
	}
	if t.Failed() {
		return
	}
	for _, from := range c.machines() {
		own := addresses(c.podOn(t, from, "echo"))
		for _, to := range c.machines() {
			pod := c.podOn(t, to, "echo")
			for i, address := range addresses(pod) {
				harness.Eventually(t, 15*time.Second, fmt.Sprintf("pod on %s from %s by %s", to.Name(), from.Name(),
					address), func(ctx context.Context) error {
					name, client, err := c.get(ctx, from, address, "8080")
					if err == nil && (name != pod.Name || client != own[i]) {
						err = fmt.Errorf("%w: %s answered %s, want %s to answer %s", harness.ErrStop, name, client,
							pod.Name, own[i])
					}
					return err
				})
			}
		}
	}
	left, right := c.podOn(t, c.main, "echo"), c.podOn(t, c.near, "echo")
	for i := range addresses(left) {
		c.download(t, left, right, addresses(right)[i])
		c.download(t, right, left, addresses(left)[i])
	}
}

// everyPod wants the requests of one kind to be answered by all pods of the service.
func (c *cluster) everyPod(t *testing.T, what string, ask func(context.Context) (string, error)) {
	t.Helper()
	harness.Eventually(t, 15*time.Second, what, func(ctx context.Context) error {
		seen := map[string]bool{}
		for range 40 {
			name, err := ask(ctx)
			if err != nil {
				return err
			}
			if seen[name] = true; len(seen) == len(c.machines()) {
				return nil
			}
		}
		return fmt.Errorf("only %v answer", seen)
	})
}

// testDualServices reaches the service by each of its addresses from pods and from the nodes
// themselves, and by its port from beside them.
func testDualServices(t *testing.T, c *cluster) {
	svc, err := c.client.CoreV1().Services(space).Get(t.Context(), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkFamilies(t, "addresses of the service", svc.Spec.ClusterIPs, serviceRange, serviceRange6)
	for _, m := range c.machines() {
		for _, ip := range svc.Spec.ClusterIPs {
			c.everyPod(t, "service "+ip+" from a pod on "+m.Name(), func(ctx context.Context) (string, error) {
				name, _, err := c.get(ctx, m, ip, "80")
				return name, err
			})
			c.everyPod(t, "service "+ip+" from the node "+m.Name(), func(ctx context.Context) (string, error) {
				out, err := m.Command(ctx, options.podtool, "get",
					"http://"+net.JoinHostPort(ip, "80")+"/").CombinedOutput()
				if err != nil {
					return "", fmt.Errorf("%w: %s", err, out)
				}
				name, _, _ := strings.Cut(string(out), " ")
				return name, nil
			})
		}
		for _, ip := range []string{m.Address(), m.Address6()} {
			c.everyPod(t, "port of "+m.Name()+" at "+ip, func(ctx context.Context) (string, error) {
				got, err := fetch(ctx, "http://"+net.JoinHostPort(ip, "30092")+"/")
				name, _, _ := strings.Cut(got, " ")
				return name, err
			})
		}
	}
}

// testDualNames asks for both services' addresses of each family, of the server that a pod's
// resolver asks first and of each there is.
func testDualNames(t *testing.T, c *cluster) {
	svc, err := c.client.CoreV1().Services(space).Get(t.Context(), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var pods [2][]string
	for _, m := range c.machines() {
		for i, ip := range addresses(c.podOn(t, m, "echo")) {
			pods[i] = append(pods[i], ip)
		}
	}
	for _, m := range c.machines() {
		pid, pod := only(t, m.echoes()), c.podOn(t, m, "echo").Name
		for i, kind := range []string{"A", "AAAA"} {
			slices.Sort(pods[i])
			for name, want := range map[string][]string{"echo": svc.Spec.ClusterIPs[i : i+1], "headless": pods[i]} {
				got, err := c.try(t.Context(), "", "exec", pod, "--", "podtool", "lookup", kind, name)
				if err != nil || !slices.Equal(strings.Fields(got), want) {
					t.Errorf("on %s, %s of %s: %q (%v), want %v", m.Name(), kind, name, got, err, want)
				}
				for _, at := range []string{clusterDNS, clusterDNS6} {
					said, err := m.inPod(t.Context(), pid, "busybox", "nslookup", "-type="+strings.ToLower(kind),
						name+"."+space+".svc.cluster.local", at)
					if err != nil {
						t.Errorf("on %s, %s of %s at %s: %v", m.Name(), kind, name, at, err)
					}
					for _, ip := range want {
						if !slices.Contains(strings.Split(said, "\n"), "Address: "+ip) {
							t.Errorf("on %s, %s of %s at %s: %s, want %s", m.Name(), kind, name, at, said, ip)
						}
					}
				}
			}
		}
	}
}

// testDualOutside wants pods to reach what knows nothing of them, which sees their node.
func testDualOutside(t *testing.T, c *cluster) {
	web := exec.Command("ip", "netns", "exec", sandbox.OutsideNetns, options.podtool, "serve", ":8085")
	if err := web.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = web.Process.Kill()
		_ = web.Wait()
	}()
	for _, m := range c.machines() {
		for outside, want := range map[string]string{sandbox.OutsideIP: m.Address(), sandbox.OutsideIP6: m.Address6()} {
			harness.Eventually(t, 10*time.Second, outside+" from a pod on "+m.Name(), func(ctx context.Context) error {
				_, client, err := c.get(ctx, m, outside, "8085")
				if err == nil && client != want {
					err = fmt.Errorf("%w: it sees %s, want %s", harness.ErrStop, client, want)
				}
				return err
			})
		}
	}
}

// testDualPolicy lets in but one of a pod's addresses.
func testDualPolicy(t *testing.T, c *cluster) {
	to, from := c.podOn(t, c.main, "echo"), c.podOn(t, c.near, "echo")
	for i, allowed := range addresses(from) {
		bits := "/32"
		if i == 1 {
			bits = "/128"
		}
		c.apply(t, fmt.Sprintf(
			"{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: one}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: %q}}]}]}}", allowed+bits))
		for j, address := range addresses(to) {
			harness.Eventually(t, 15*time.Second, fmt.Sprintf("%s is let in, %s asks %s", allowed, addresses(from)[j],
				address), func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				_, _, err := c.get(ctx, c.near, address, "8080")
				if i == j {
					return err
				}
				if err == nil {
					return errors.New("it is answered")
				}
				return nil
			})
		}
	}
}

// testDualRefused starts a server and an agent on a machine whose IPv6 is switched off, where no
// pod could be started.
func testDualRefused(t *testing.T, c *cluster) {
	plain := newMachine(t, sandbox.HostConfig{Name: "plain", Address: plainIP})
	harness.Output(t, plain.Host, "sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1")
	const remedy = "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
	if said := plain.refused(t, "server", "--data-dir", filepath.Join(sandbox.Dir(), "server"), "--cluster-cidr",
		podRange+","+podRange6, "--service-cidr", serviceRange+","+serviceRange6); !strings.Contains(said, remedy) {
		t.Errorf("a server says %q, want %q in it", said, remedy)
	}
	token := strings.TrimSpace(c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig, "--quiet"))
	plain.launch(t, "agent", "--server", "https://"+leftIP+":6443", "--token-file", plain.write(t, "token", token))
	if said := plain.ended(t); !strings.Contains(said, remedy) {
		t.Errorf("an agent says %q, want %q in it", said, remedy)
	}
}

// ended waits for a mote that cannot go on to say so in one line, which it returns.
func (m *machine) ended(t *testing.T) string {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(60 * time.Second):
		t.Fatalf("mote on %s goes on: %s", m.Name(), m.Tail(5))
	}
	said := strings.TrimSpace(m.Tail(1))
	if m.State().ExitCode() != 1 || !strings.HasPrefix(said, "mote: ") {
		t.Errorf("mote on %s ended with code %d and said %q", m.Name(), m.State().ExitCode(), said)
	}
	return said
}

// ipv6Cluster is one whose first family, or only one, is IPv6.
type ipv6Cluster struct {
	name         string
	host         sandbox.HostConfig
	agent        *sandbox.HostConfig // another machine to join it; nil for none
	pods         []string
	services     []string
	kinds        []string // of the names' records, in the order of the ranges
	nodeIP       string
	nodePortHost string
}

// TestIPv6 starts servers whose first family, or only one, is IPv6, and wants pods, a service and
// names of them.
func TestIPv6(t *testing.T) {
	options.NeedMote(t)
	needIPv6(t)
	for _, row := range []ipv6Cluster{
		{
			"First", sandbox.HostConfig{Name: "sixfirst", Address: firstIP, Address6: firstIP6}, nil,
			[]string{podRange6, podRange}, []string{serviceRange6, serviceRange}, []string{"AAAA", "A"},
			firstIP6 + "," + firstIP, firstIP6,
		},
		{
			"Alone", sandbox.HostConfig{Name: "sixonly", Address: onlyIP6},
			&sandbox.HostConfig{Name: "sixjoined", Address: joinedIP6},
			[]string{podRange6}, []string{serviceRange6}, []string{"AAAA"}, "", onlyIP6,
		},
	} {
		begin := time.Now()
		t.Run(row.name, row.run)
		t.Logf("%s took %v", row.name, time.Since(begin).Round(100*time.Millisecond))
	}
}

func (row ipv6Cluster) run(t *testing.T) {
	c := &cluster{kubeconfig: filepath.Join(sandbox.Dir(), "kubeconfig-"+row.host.Name)}
	c.main = newMachine(t, row.host)
	if row.agent != nil {
		c.near = newMachine(t, *row.agent)
	}
	for _, m := range c.machines() {
		m.give(t, filepath.Join(options.Images, "podtool.tar"), filepath.Join(dataDir(), "agent/images/podtool.tar"))
	}
	args := []string{"server", "--kubeconfig-output", c.kubeconfig, "--cluster-cidr", strings.Join(row.pods, ","),
		"--service-cidr", strings.Join(row.services, ",")}
	if row.nodeIP != "" {
		args = append(args, "--node-ip", row.nodeIP)
	}
	begin := time.Now()
	c.main.launch(t, args...)
	c.takeKubeconfig(t)
	defer func() {
		if t.Failed() {
			c.explain(t)
		}
	}()
	t.Logf("server ready after %v", c.readyWithin(t, c.main, begin, 60*time.Second).Round(time.Millisecond))
	server := "https://" + net.JoinHostPort(row.nodePortHost, "6443")
	said := c.main.mote(t, "token", "create", "--kubeconfig", c.kubeconfig)
	if !strings.Contains(said, "mote agent --server "+server+" --token M10") {
		t.Fatalf("mote token create says %q, not how to join", said)
	}
	if row.agent != nil {
		c.near.join(t, c, "--server", server, "--token-file",
			c.near.write(t, "token", strings.Fields(said)[len(strings.Fields(said))-1]))
	}
	c.kubectl(t, "create", "namespace", space)
	c.apply(t, strings.ReplaceAll(dualManifest, "RequireDualStack", "PreferDualStack"))
	c.echoesReady(t, len(c.machines()))
	if row.agent != nil {
		testDualPods(t, c)
	}
	row.checkService(t, c)
	row.checkOtherOrder(t, c)
}

// checkService reaches the service by all there is of it, and by its own one the API server.
func (row ipv6Cluster) checkService(t *testing.T, c *cluster) {
	t.Helper()
	svc, err := c.client.CoreV1().Services(space).Get(t.Context(), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkFamilies(t, "addresses of the service", svc.Spec.ClusterIPs, row.services...)
	for _, m := range c.machines() {
		pod := c.podOn(t, m, "echo")
		checkFamilies(t, "addresses of the pod on "+m.Name(), addresses(pod), row.pods...)
		for i, ip := range svc.Spec.ClusterIPs {
			c.everyPod(t, "service "+ip+" from "+m.Name(), func(ctx context.Context) (string, error) {
				name, _, err := c.get(ctx, m, ip, "80")
				return name, err
			})
			if got, err := c.try(t.Context(), "", "exec", pod.Name, "--", "podtool", "lookup", row.kinds[i],
				"echo"); err != nil || strings.TrimSpace(got) != ip {
				t.Errorf("on %s, %s of the service: %q (%v), want %s", m.Name(), row.kinds[i], got, err, ip)
			}
		}
		if got, err := c.try(t.Context(), "", "exec", pod.Name, "--", "podtool", "api", "GET",
			"/version"); err != nil || !strings.HasPrefix(got, "200") {
			t.Errorf("the API server, asked by a pod on %s: %q (%v)", m.Name(), got, err)
		}
	}
	if got, err := fetch(t.Context(), "http://"+net.JoinHostPort(row.nodePortHost, "30092")+"/"); err != nil ||
		!strings.HasPrefix(got, "echo-") {
		t.Errorf("port of the node: %q (%v)", got, err)
	}
}

// checkOtherOrder gives the server its ranges the other way round, which its node's are not.
func (row ipv6Cluster) checkOtherOrder(t *testing.T, c *cluster) {
	t.Helper()
	if len(row.pods) == 1 {
		return
	}
	c.main.Stop(t)
	c.main.launch(t, "server", "--kubeconfig-output", c.kubeconfig, "--cluster-cidr", row.pods[1]+","+row.pods[0],
		"--service-cidr", row.services[1]+","+row.services[0])
	if said := c.main.ended(t); !strings.Contains(said, "give the ranges the cluster began with, in their order") {
		t.Errorf("with its ranges in another order it says %q", said)
	}
}
