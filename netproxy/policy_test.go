package netproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap/zaptest"
	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/netnstest"
)

// inside runs f on a thread in the namespace.
func inside(t *testing.T, ns string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		runtime.LockOSThread()
		handle, err := netns.GetFromName(ns)
		if err != nil {
			done <- err
			return
		}
		defer handle.Close()
		if err := netns.Set(handle); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %s: %v", ns, err)
	}
}

// TestProxy_Run_NetworkPolicy lets one pod talk to another over the bridge, and forbids and allows
// it by policies.
func TestProxy_Run_NetworkPolicy(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	h := newHost(t)
	second := h.pod + "-b"
	run(t, "ip", "netns", "add", second)
	t.Cleanup(func() { run(t, "ip", "netns", "del", second) })
	run(t, "ip", "link", "add", "pod1", "type", "veth", "peer", "name", "eth0", "netns", second)
	run(t, "ip", "link", "set", "pod1", "master", "mote0", "up")
	run(t, "ip", "link", "set", "dev", "pod1", "type", "bridge_slave", "hairpin", "on")
	run(t, "ip", "-n", second, "addr", "add", "10.42.0.3/24", "dev", "eth0")
	run(t, "ip", "-n", second, "link", "set", "eth0", "up")
	run(t, "ip", "-n", second, "route", "add", "default", "via", "10.42.0.1")
	for _, port := range []string{"80", "81"} {
		var l net.Listener
		inside(t, second, func() (err error) {
			l, err = net.Listen("tcp", "10.42.0.3:"+port)
			return err
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
		t.Cleanup(func() {
			l.Close()
			<-done
		})
	}
	client := func(port string) bool {
		var err error
		inside(t, h.pod, func() error {
			var conn net.Conn
			if conn, err = net.DialTimeout("tcp", "10.42.0.3:"+port, time.Second); err == nil {
				conn.Close()
			}
			return nil
		})
		return err == nil
	}
	objects := clusterObjects("10.42.0.3", 80)
	for i, name := range []string{"client", "server"} {
		objects = append(objects, &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}},
			Spec:       v1.PodSpec{NodeName: "n1"},
			Status:     v1.PodStatus{Phase: v1.PodRunning, PodIPs: []v1.PodIP{{IP: fmt.Sprintf("10.42.0.%d", i+2)}}},
		})
	}
	objects = append(objects, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	api := fake.NewClientset(objects...)
	dir := t.TempDir()
	p, err := New(Config{
		Client:          api,
		NodeName:        "n1",
		Cluster:         cluster("10.42.0.0/16", "10.43.0.0/16"),
		LocalServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		CNIConfDir:      filepath.Join(dir, "net.d"),
		StateDir:        filepath.Join(dir, "cni"),
		Logger:          zaptest.NewLogger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	<-p.Ready()
	want := func(step string, to80, to81 bool) {
		t.Helper()
		eventually(t, func() string {
			if a, b := client("80"), client("81"); a != to80 || b != to81 {
				return fmt.Sprintf("%s: port 80 open %v, 81 open %v", step, a, b)
			}
			return ""
		})
	}
	policies := api.NetworkingV1().NetworkPolicies("default")
	create := func(name string, spec networking.NetworkPolicySpec) {
		t.Helper()
		if _, err := policies.Create(ctx,
			&networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec},
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(name string) {
		t.Helper()
		if err := policies.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	selects := func(app string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	}
	server, clientSelector := selects("server"), selects("client")

	want("without policies", true, true)
	create("deny", networking.NetworkPolicySpec{PodSelector: metav1.LabelSelector{},
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress}})
	want("ingress denied", false, false)
	// An isolated pod still reaches itself through its own service.
	create("isolate", networking.NetworkPolicySpec{PodSelector: metav1.LabelSelector{},
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress}})
	eventually(t, func() string {
		if out := run(t, "nft", "list", "table", "inet", "mote-policy"); !strings.Contains(out, "chain egress {") {
			return out
		}
		return ""
	})
	inside(t, second, func() error {
		conn, err := net.DialTimeout("tcp", "10.43.0.80:80", 3*time.Second)
		if err != nil {
			t.Errorf("isolated pod to its own service: %v", err)
			return nil
		}
		return conn.Close()
	})
	want("isolated", false, false)
	drop("isolate")
	number := intstr.FromInt32(80)
	create("allow", networking.NetworkPolicySpec{PodSelector: server,
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress},
		Ingress: []networking.NetworkPolicyIngressRule{{
			From:  []networking.NetworkPolicyPeer{{PodSelector: &clientSelector}},
			Ports: []networking.NetworkPolicyPort{{Port: &number}},
		}}})
	want("one port allowed", true, false)
	// The node itself is never kept out: probes come from there.
	if conn, err := net.DialTimeout("tcp", "10.42.0.3:81", 2*time.Second); err != nil {
		t.Errorf("node to a pod: %v", err)
	} else {
		conn.Close()
	}
	run(t, "nft", "delete", "table", "inet", "mote-policy")
	want("table deleted by another program", true, false)
	run(t, "nft", "flush", "table", "inet", "mote-policy")
	want("table flushed by another program", true, false)
	create("no-way-out", networking.NetworkPolicySpec{PodSelector: clientSelector,
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeEgress}})
	want("egress denied", false, false)
	drop("no-way-out")
	drop("allow")
	drop("deny")
	want("policies deleted", true, true)
	eventually(t, func() string {
		if out := run(t, "nft", "list", "tables"); strings.Contains(out, "mote-policy") {
			return out
		}
		return ""
	})
}
