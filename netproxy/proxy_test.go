package netproxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/netnstest"
)

// cluster has pod and service ranges, separated by commas.
func cluster(pods, services string) clusterconfig.Config {
	var c clusterconfig.Config
	for _, list := range []struct {
		texts string
		into  *[]netip.Prefix
	}{{pods, &c.ClusterCIDRs}, {services, &c.ServiceCIDRs}} {
		for text := range strings.SplitSeq(list.texts, ",") {
			*list.into = append(*list.into, netip.MustParsePrefix(text))
		}
	}
	return c.WithDefaults()
}

// eventually waits until check returns "" and fails with its last answer otherwise.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
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

// testHost is a namespace laid out like a node: an address, a default route, and one pod behind the
// bridge.
type testHost struct {
	pod string // the pod's namespace
}

// newHost makes the pod in a namespace of its own, joined to the bridge as the plugin would.
func newHost(t *testing.T) testHost {
	t.Helper()
	h := testHost{pod: fmt.Sprintf("mote-np-%d", os.Getpid())}
	run(t, "ip", "link", "add", "up0", "type", "bridge")
	run(t, "ip", "addr", "add", "192.0.2.5/24", "dev", "up0")
	run(t, "ip", "link", "set", "up0", "up")
	run(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	run(t, "ip", "link", "add", "mote0", "type", "bridge")
	run(t, "ip", "addr", "add", "10.42.0.1/24", "dev", "mote0")
	run(t, "ip", "link", "set", "mote0", "up")
	run(t, "ip", "netns", "add", h.pod)
	t.Cleanup(func() { run(t, "ip", "netns", "del", h.pod) })
	run(t, "ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", h.pod)
	run(t, "ip", "link", "set", "pod0", "master", "mote0")
	run(t, "ip", "link", "set", "dev", "pod0", "type", "bridge_slave", "hairpin", "on")
	run(t, "ip", "link", "set", "pod0", "up")
	run(t, "ip", "-n", h.pod, "addr", "add", "10.42.0.2/24", "dev", "eth0")
	run(t, "ip", "-n", h.pod, "link", "set", "eth0", "up")
	run(t, "ip", "-n", h.pod, "link", "set", "lo", "up")
	run(t, "ip", "-n", h.pod, "route", "add", "default", "via", "10.42.0.1")
	return h
}

// clusterObjects is a cluster of one node with a service whose only endpoint is at ip:port.
func clusterObjects(ip string, port int32) []runtime.Object {
	tcp, name, yes, node := v1.ProtocolTCP, "http", true, "n1"
	vip := v1.LoadBalancerIPModeVIP
	return []runtime.Object{
		&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Spec: v1.NodeSpec{PodCIDR: "10.42.0.0/24", PodCIDRs: []string{"10.42.0.0/24"}}},
		&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: v1.ServiceSpec{
			Type:       v1.ServiceTypeNodePort,
			ClusterIP:  "10.43.0.80",
			ClusterIPs: []string{"10.43.0.80"},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports: []v1.ServicePort{{
				Name:       "http",
				Protocol:   tcp,
				Port:       80,
				TargetPort: intstr.FromInt32(port),
				NodePort:   30080,
			}},
		}},
		&discovery.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1",
				Labels: map[string]string{discovery.LabelServiceName: "web"}},
			AddressType: discovery.AddressTypeIPv4,
			Ports:       []discovery.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
			Endpoints: []discovery.Endpoint{{Addresses: []string{ip}, NodeName: &node,
				Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes}}},
		},
		&v1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "balanced"},
			Spec: v1.ServiceSpec{
				Type:       v1.ServiceTypeLoadBalancer,
				ClusterIP:  "10.43.0.81",
				ClusterIPs: []string{"10.43.0.81"},
				IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
				Ports:      []v1.ServicePort{{Name: "http", Protocol: tcp, Port: 8383}},
			},
			Status: v1.ServiceStatus{LoadBalancer: v1.LoadBalancerStatus{Ingress: []v1.LoadBalancerIngress{{
				IP: ip, IPMode: &vip, Ports: []v1.PortStatus{{Port: 8383, Protocol: tcp}}}}}},
		},
		&discovery.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "balanced-1",
				Labels: map[string]string{discovery.LabelServiceName: "balanced"}},
			AddressType: discovery.AddressTypeIPv4,
			Ports:       []discovery.EndpointPort{{Name: &name, Protocol: &tcp, Port: &port}},
			Endpoints: []discovery.Endpoint{{Addresses: []string{ip}, NodeName: &node,
				Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes}}},
		},
		&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-dns"}, Spec: v1.ServiceSpec{
			ClusterIP:  "10.43.0.10",
			ClusterIPs: []string{"10.43.0.10"},
			IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports:      []v1.ServicePort{{Name: "dns-tcp", Protocol: tcp, Port: 53}},
		}},
		&networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
			Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}},
	}
}

// serve answers every connection to addr with text until the test ends.
func serve(t *testing.T, addr, text string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// get asks url from the host and returns the answer or the error.
func get(url string) string {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// TestProxy_Run drives each backend with real packets. The one endpoint is an address of the host,
// which needs no pod that serves; the pod asks.
func TestProxy_Run_NFTables(t *testing.T) { testProxyRun(t, ModeNFTables) }
func TestProxy_Run_IPTables(t *testing.T) { testProxyRun(t, ModeIPTables) }

func testProxyRun(t *testing.T, mode string) {
	if !netnstest.Enter(t) {
		return
	}
	h := newHost(t)
	run(t, "ip", "addr", "add", "10.43.0.10/32", "dev", "lo")
	serve(t, "192.0.2.5:8080", "web")
	serve(t, "10.43.0.10:53", "dns")
	dir := t.TempDir()
	c := Config{
		Client:          fake.NewClientset(clusterObjects("192.0.2.5", 8080)...),
		NodeName:        "n1",
		NodeIPs:         []net.IP{net.ParseIP("192.0.2.5")},
		Cluster:         cluster("10.42.0.0/16", "10.43.0.0/16"),
		LocalServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		Mode:            mode,
		HealthzAddress:  DefaultHealthzAddress,
		MetricsAddress:  DefaultMetricsAddress,
		CNIConfDir:      filepath.Join(dir, "net.d"),
		StateDir:        filepath.Join(dir, "cni"),
		Logger:          zaptest.NewLogger(t),
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	select {
	case <-p.Ready():
		t.Logf("ready after %v with %s", time.Since(start), p.Mode())
	case err := <-done:
		t.Fatal(err)
	case <-time.After(60 * time.Second):
		t.Fatal("not ready")
	}
	reaches := func(url, want string) {
		t.Helper()
		eventually(t, func() string {
			if got := get(url); got != want {
				return fmt.Sprintf("%s: %s", url, got)
			}
			return ""
		})
	}
	reaches("http://10.43.0.80/", "web")
	reaches("http://192.0.2.5:30080/", "web")
	reaches("http://127.0.0.1:30080/", "web")
	// The service of the cluster DNS has no endpoints, and must not make the proxier reject what
	// the node answers itself.
	reaches("http://10.43.0.10:53/", "dns")
	// A load balancer's port at the host's address is the service's, until a program of the host
	// listens there.
	reaches("http://192.0.2.5:8383/", "web")
	serve(t, "192.0.2.5:8383", "the host's")
	services := c.Client.CoreV1().Services("default")
	if s, err := services.Get(ctx, "balanced", metav1.GetOptions{}); err != nil {
		t.Error(err)
	} else {
		s.Labels = map[string]string{"changed": ""} // so that the host's ports are looked at
		if _, err := services.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
	}
	reaches("http://192.0.2.5:8383/", "the host's")
	reaches("http://10.43.0.81:8383/", "web")
	if got := get("http://127.0.0.1:10256/healthz"); !strings.Contains(got, `"nodeEligible":true`) {
		t.Errorf("health: %s", got)
	}
	if got := get("http://127.0.0.1:10249/proxyMode"); got != mode {
		t.Errorf("mode is said to be %s", got)
	}
	metrics := get("http://127.0.0.1:10249/metrics")
	for _, want := range []string{"kubeproxy_sync_proxy_rules_duration_seconds_count",
		"process_resident_memory_bytes"} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("metrics lack %s: %.300s", want, metrics)
		}
	}
	// The registry has this one itself; it stands for all that other parts of the process count.
	if strings.Contains(metrics, "\nregistered_metrics_total") {
		t.Error("metrics of other parts of the process are shown")
	}
	fromPod := func(addr string) string {
		return run(t, "ip", "netns", "exec", h.pod, "timeout", "5", "bash", "-c",
			fmt.Sprintf(`exec 3<>/dev/tcp/%s; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n 1 <&3`,
				strings.Replace(addr, ":", "/", 1)))
	}
	for addr, want := range map[string]string{"10.43.0.80:80": "web", "192.0.2.5:30080": "web",
		"10.43.0.10:53": "dns"} {
		if got := fromPod(addr); got != want {
			t.Errorf("pod to %s: %q", addr, got)
		}
	}
	if _, err := os.Stat(filepath.Join(c.CNIConfDir, "10-mote.conflist")); err != nil {
		t.Error(err)
	}

	// The network goes away, and services stay.
	run(t, "ip", "route", "del", "default")
	reaches("http://10.43.0.80/", "web")

	if mode == ModeNFTables {
		run(t, "nft", "flush", "ruleset")
		reaches("http://10.43.0.80/", "web")
		reaches("http://10.43.0.10:53/", "dns")
	}

	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	reaches("http://10.43.0.80/", "web")
	// Upstream's loop cannot be stopped, and may still be about to write what was last asked of it.
	eventually(t, func() string {
		for range 2 {
			if err := Cleanup(context.Background(),
				CleanupConfig{CNIConfDir: c.CNIConfDir, StateDir: c.StateDir, Logger: c.Logger}); err != nil {
				return err.Error()
			}
		}
		left := run(t, "nft", "list", "ruleset") + run(t, "iptables-save")
		for _, trace := range []string{"kube-proxy", "KUBE-SVC", "KUBE-SERVICES", "mote", "MOTE", "10.43.0.80"} {
			if strings.Contains(left, trace) {
				return fmt.Sprintf("%q is left:\n%s", trace, left)
			}
		}
		return ""
	})
}

func TestChooseMode(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	ctx := context.Background()
	for forced, want := range map[string]string{ModeAuto: ModeNFTables, ModeNFTables: ModeNFTables,
		ModeIPTables: ModeIPTables} {
		if got, err := chooseMode(ctx, forced, zap.NewNop()); err != nil || got != want {
			t.Errorf("chooseMode(%q) = %q, %v", forced, got, err)
		}
	}
	if got := run(t, "nft", "list", "ruleset"); strings.Contains(got, "mote-probe") {
		t.Errorf("the probe left its table:\n%s", got)
	}
	t.Setenv("PATH", t.TempDir())
	if got, err := chooseMode(ctx, ModeAuto, zap.NewNop()); err == nil ||
		!strings.Contains(err.Error(), ErrNoBackend.Error()) {
		t.Errorf("without tools: %q, %v", got, err)
	}
}

func TestConfig_Validate(t *testing.T) {
	err := Config{Mode: "ipvs", NodePortAddresses: []string{"primary"},
		Cluster: clusterconfig.Config{NetworkBackend: "pigeon"}}.Validate()
	for _, want := range []string{"no client", "node name", "ipvs", "node port", "pigeon", "cluster CIDR"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not name %s: %v", want, err)
		}
	}
}
