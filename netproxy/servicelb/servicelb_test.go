package servicelb

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/hostports"
	"github.com/mote-dev/mote/internal/netnstest"
)

// listen opens a TCP listener in the test's network namespace.
func listen(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

func TestScanner_Scan(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	listen(t, ":8080")
	listen(t, "127.0.0.1:8081")
	listen(t, "0.0.0.0:8082")
	for _, address := range []string{":5353", "127.0.0.1:5354", ":40000"} {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	s, err := newScanner()
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.scan()
	if err != nil {
		t.Fatal(err)
	}
	any4 := netip.MustParseAddr("192.0.2.1")
	for _, row := range []struct {
		port     uint16
		protocol corev1.Protocol
		want     bool
	}{
		{8080, corev1.ProtocolTCP, true},
		{8080, corev1.ProtocolUDP, false},
		{8081, corev1.ProtocolTCP, false}, // loopback only
		{8082, corev1.ProtocolTCP, true},
		{5353, corev1.ProtocolUDP, true},
		{5354, corev1.ProtocolUDP, false},  // loopback only
		{40000, corev1.ProtocolUDP, false}, // a client's port
	} {
		l, got := hostports.Find(found, any4, row.port, row.protocol)
		if got != row.want {
			t.Errorf("port %d/%s found: %v, want %v", row.port, row.protocol, got, row.want)
		}
		if got && l.Owner == "" {
			t.Errorf("port %d/%s has no owner", row.port, row.protocol)
		}
	}

	// No client waits that long: it is a server, such as WireGuard.
	for c, since := range s.clients {
		s.clients[c] = since.Add(-clientAge)
	}
	if found, err = s.scan(); err != nil {
		t.Fatal(err)
	}
	if _, got := hostports.Find(found, any4, 40000, corev1.ProtocolUDP); !got {
		t.Error("a UDP server on a port of clients is not found")
	}
}

// Services that change all the time do not make every node look at its ports all the time. A Node
// that is deleted and registered again gets its report at once.
func TestReporter_Run_PokedOften_AndNodeRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		var looks atomic.Int64
		r := New(Config{
			Client:   client,
			NodeName: "n",
			Wanted:   func() bool { looks.Add(1); return false },
			Changed:  func() {},
			Logger:   zap.NewNop(),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		for range 100 {
			r.Poke()
			time.Sleep(50 * time.Millisecond)
		}
		if n := looks.Load(); n < 4 || n > 7 {
			t.Errorf("looked %d times in five seconds", n)
		}
		again := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "again"}}
		if _, err := client.CoreV1().Nodes().Update(ctx, again, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		r.Renew()
		time.Sleep(2 * pokeInterval)
		n, err := client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{})
		if err != nil || n.Annotations[hostports.Annotation] == "" {
			t.Errorf("the new node has no report: %v, %v", n.Annotations, err)
		}
	})
}

// The reporter patches its node, and takes a port from a service once a program listens on it.
func TestReporter_Run(t *testing.T) {
	if !netnstest.Enter(t) {
		return
	}
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	changes := make(chan struct{}, 16)
	r := New(Config{
		Client:   client,
		NodeName: "n",
		Wanted:   func() bool { return false },
		Changed:  func() { changes <- struct{}{} },
		Logger:   zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	reported := func(want bool) {
		t.Helper()
		err := wait.PollUntilContextTimeout(ctx, 5*time.Millisecond, 10*time.Second, true,
			func(ctx context.Context) (bool, error) {
				n, err := client.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{})
				if err != nil {
					return false, err
				}
				text, ok := n.Annotations[hostports.Annotation]
				if !ok {
					return false, nil
				}
				listeners, err := hostports.Parse(text)
				_, found := hostports.Find(listeners, netip.MustParseAddr("192.0.2.1"), 8080, corev1.ProtocolTCP)
				return found == want, err
			})
		if err != nil {
			t.Fatalf("port 8080 reported: want %v: %v", want, err)
		}
	}
	reported(false)
	listen(t, ":8080")
	r.Poke()
	reported(true)
	if len(changes) == 0 {
		t.Error("nobody was told that the host's ports changed")
	}
}

func TestReporter_Trim(t *testing.T) {
	r := New(Config{})
	r.own = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	r.listeners = []hostports.Listener{{Port: 22, Protocol: corev1.ProtocolTCP}}
	service := func(port int32) *corev1.Service {
		return &corev1.Service{
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: port, Protocol: corev1.ProtocolTCP}}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
				{IP: "192.0.2.1"}, {IP: "2001:db8::1"}, {IP: "192.0.2.2"}}}},
		}
	}
	if s := service(80); r.Trim(s) != s {
		t.Error("a service on a free port is changed")
	}
	s := service(22)
	got := r.Trim(s)
	if len(got.Status.LoadBalancer.Ingress) != 1 || got.Status.LoadBalancer.Ingress[0].IP != "192.0.2.2" {
		t.Errorf("the proxy serves %v, want another host's address alone", got.Status.LoadBalancer.Ingress)
	}
	if len(s.Status.LoadBalancer.Ingress) != 3 {
		t.Error("the shared object was changed")
	}
}
