package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-dev/mote/internal/informer"
)

// clusterObjects is the cluster that the tests query.
func clusterObjects() []runtime.Object {
	yes, no := true, false
	name := func(ns, n string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: n} }
	ref := func(s string) *string { return &s }
	number := func(n int32) *int32 { return &n }
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	slice := func(service, n string, kind discovery.AddressType, ports []discovery.EndpointPort,
		endpoints ...discovery.Endpoint) *discovery.EndpointSlice {
		m := name("default", n)
		m.Labels = map[string]string{discovery.LabelServiceName: service}
		return &discovery.EndpointSlice{
			ObjectMeta:  m,
			AddressType: kind,
			Ports:       ports,
			Endpoints:   endpoints,
		}
	}
	ready, unready := discovery.EndpointConditions{Ready: &yes}, discovery.EndpointConditions{Ready: &no}
	web := []discovery.EndpointPort{{Name: ref("http"), Protocol: &tcp, Port: number(8080)},
		{Name: ref(""), Protocol: &tcp, Port: number(9)}}
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "empty"}},
		&corev1.Service{ObjectMeta: name("default", "kubernetes"), Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.1", ClusterIPs: []string{"10.43.0.1"},
			Ports: []corev1.ServicePort{{Name: "https", Protocol: tcp, Port: 443}},
		}},
		&corev1.Service{ObjectMeta: name("default", "dual"), Spec: corev1.ServiceSpec{
			ClusterIP: "10.43.0.2", ClusterIPs: []string{"10.43.0.2", "fd00:43::2"},
			Ports: []corev1.ServicePort{{Name: "a", Protocol: tcp, Port: 1}, {Name: "b", Protocol: udp, Port: 2},
				{Protocol: tcp, Port: 3}},
		}},
		&corev1.Service{ObjectMeta: name("default", "headless"),
			Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}},
		slice("headless", "headless-1", discovery.AddressTypeIPv4, web,
			discovery.Endpoint{Addresses: []string{"10.42.0.10"}, Hostname: ref("Db-0"), Conditions: ready},
			discovery.Endpoint{Addresses: []string{"10.42.0.11"}, Conditions: ready},
			discovery.Endpoint{Addresses: []string{"10.42.0.12"}, Hostname: ref("db-2"), Conditions: unready}),
		slice("headless", "headless-2", discovery.AddressTypeIPv6, web,
			discovery.Endpoint{Addresses: []string{"fd00:42::10"}, Hostname: ref("db-0")},
			discovery.Endpoint{Addresses: []string{"fd00:42::"}, Conditions: ready}),
		&corev1.Service{ObjectMeta: name("default", "unready"),
			Spec: corev1.ServiceSpec{ClusterIP: "None", PublishNotReadyAddresses: true}},
		slice("unready", "unready-1", discovery.AddressTypeIPv4, web,
			discovery.Endpoint{Addresses: []string{"10.42.0.20"}, Hostname: ref("u-0"), Conditions: unready}),
		&corev1.Service{ObjectMeta: name("default", "nobody"), Spec: corev1.ServiceSpec{ClusterIP: "None"}},
		slice("nobody", "nobody-1", discovery.AddressTypeIPv4, web,
			discovery.Endpoint{Addresses: []string{"10.42.0.30"}, Conditions: unready}),
		slice("kubernetes", "kubernetes-1", discovery.AddressTypeIPv4, web,
			discovery.Endpoint{Addresses: []string{"10.42.0.40"}, Conditions: ready}),
		&corev1.Service{ObjectMeta: name("default", "out"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "www.example.com"}},
		&corev1.Service{ObjectMeta: name("default", "in"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName,
				ExternalName: "kubernetes.default.svc.cluster.local"}},
		&corev1.Service{ObjectMeta: name("default", "loop"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName,
				ExternalName: "loop.default.svc.cluster.local."}},
		&corev1.Service{ObjectMeta: name("default", "gone"),
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "missing.example.com"}},
	}
}

// upstream is a resolver on loopback with a handler that tests replace.
type upstream struct {
	addr    netip.AddrPort
	queries atomic.Int64
	handler atomic.Pointer[func(m *wire.Msg, udp bool) *wire.Msg]
}

// startUpstream runs a resolver until the test ends. Its first handler knows www.example.com and
// denies the rest.
func startUpstream(t *testing.T) *upstream {
	t.Helper()
	u := &upstream{}
	u.answer(func(m *wire.Msg, _ bool) *wire.Msg {
		reply := new(wire.Msg).SetReply(m)
		if strings.EqualFold(m.Question[0].Name, "www.example.com.") && m.Question[0].Qtype == wire.TypeA {
			reply.Answer = []wire.RR{record(t, m.Question[0].Name+" 300 IN A 192.0.2.80")}
			return reply
		}
		reply.Rcode = wire.RcodeNameError
		reply.Ns = []wire.RR{record(t, "example.com. 60 IN SOA ns.example.com. host.example.com. 1 2 3 4 60")}
		return reply
	})
	packets, streams := listenBoth(t)
	u.addr = netip.MustParseAddrPort(packets.LocalAddr().String())
	for _, server := range []*wire.Server{{PacketConn: packets}, {Listener: streams}} {
		server.Handler = wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) {
			u.queries.Add(1)
			_, udp := w.RemoteAddr().(*net.UDPAddr)
			if reply := (*u.handler.Load())(m, udp); reply != nil {
				_ = w.WriteMsg(reply)
			}
		})
		started, done := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { done <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-done
		})
	}
	return u
}

func (u *upstream) answer(f func(m *wire.Msg, udp bool) *wire.Msg) { u.handler.Store(&f) }

// listenBoth listens on the same free loopback port over UDP and TCP.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		streams, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", streams.Addr().String())
		if err == nil {
			return packets, streams
		}
		streams.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func record(t testing.TB, text string) wire.RR {
	t.Helper()
	rr, err := wire.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// startServer runs a server on loopback over a fake API server until the test ends.
func startServer(t *testing.T, change func(*Config), objects ...runtime.Object) (*Server, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	packets, streams := listenBoth(t)
	addr := packets.LocalAddr().String()
	packets.Close()
	streams.Close()
	c := Config{
		Client:       client,
		NodeName:     "n1",
		ListenAddrs:  []string{addr},
		Interface:    "-",
		Resolvers:    []string{filepath.Join(t.TempDir(), "none")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")},
		Logger:       zaptest.NewLogger(t),
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	runServer(t, s)
	return s, client
}

// runServer runs a server until the test ends and waits for it to answer.
func runServer(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	return stop
}

// query sends one query over the network.
func query(t *testing.T, s *Server, network, name, qtype string, change func(*wire.Msg)) *wire.Msg {
	t.Helper()
	m := new(wire.Msg)
	m.SetQuestion(wire.Fqdn(name), wire.StringToType[qtype])
	if change != nil {
		change(m)
	}
	client := wire.Client{Net: network, UDPSize: 4096, Timeout: 10 * time.Second}
	reply, _, err := client.Exchange(m, s.listen[0].String())
	if err != nil {
		t.Fatalf("query %s %s over %s: %v", name, qtype, network, err)
	}
	return reply
}

// brief formats a reply for comparison: code, flags, and sorted records without TTL.
func brief(m *wire.Msg) string {
	var lines []string
	for _, rr := range m.Answer {
		lines = append(lines, briefRecord(rr))
	}
	slices.Sort(lines)
	out := wire.RcodeToString[m.Rcode]
	if m.Authoritative {
		out += " aa"
	}
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == wire.TypeSOA {
			out += " soa"
		}
	}
	return strings.Join(append([]string{out}, lines...), "\n")
}

func briefRecord(rr wire.RR) string {
	fields := strings.Fields(rr.String())
	return strings.Join(append([]string{fields[0]}, fields[3:]...), " ")
}

// specification lists the names that every Kubernetes DNS server must answer, and more that our
// users rely on.
var specification = []struct{ name, qtype, want string }{
	// Schema version.
	{"dns-version.cluster.local", "TXT", "NOERROR aa\ndns-version.cluster.local. TXT \"1.1.0\""},
	{"dns-version.cluster.local", "A", "NOERROR aa soa"},
	// The domain itself.
	{"cluster.local", "SOA",
		"NOERROR aa\ncluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local. SERIAL 7200 1800 86400 5"},
	{"cluster.local", "NS", "NOERROR aa\ncluster.local. NS ns.dns.cluster.local."},
	{"cluster.local", "A", "NOERROR aa soa"},
	{"ns.dns.cluster.local", "A", "NOERROR aa\nns.dns.cluster.local. A 127.0.0.1"},
	{"other.cluster.local", "A", "NXDOMAIN aa soa"},
	{"svc.cluster.local", "A", "NOERROR aa soa"},
	{"default.svc.cluster.local", "A", "NOERROR aa soa"},
	{"empty.svc.cluster.local", "A", "NOERROR aa soa"},
	{"nowhere.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	// Services with cluster addresses.
	{"kubernetes.default.svc.cluster.local", "A", "NOERROR aa\nkubernetes.default.svc.cluster.local. A 10.43.0.1"},
	{"kubernetes.default.svc.cluster.local", "AAAA", "NOERROR aa soa"},
	{"kubernetes.default.svc.cluster.local", "MX", "NOERROR aa soa"},
	{"KuberNetes.Default.SVC.cluster.local", "A", "NOERROR aa\nKuberNetes.Default.SVC.cluster.local. A 10.43.0.1"},
	{"dual.default.svc.cluster.local", "A", "NOERROR aa\ndual.default.svc.cluster.local. A 10.43.0.2"},
	{"dual.default.svc.cluster.local", "AAAA", "NOERROR aa\ndual.default.svc.cluster.local. AAAA fd00:43::2"},
	{"missing.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	{"kubernetes.empty.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	{"_https._tcp.kubernetes.default.svc.cluster.local", "SRV",
		"NOERROR aa\n_https._tcp.kubernetes.default.svc.cluster.local. SRV 0 100 443 kubernetes.default.svc.cluster.local."},
	{"_https._tcp.kubernetes.default.svc.cluster.local", "A", "NOERROR aa soa"},
	{"_https._udp.kubernetes.default.svc.cluster.local", "SRV", "NXDOMAIN aa soa"},
	{"_http._tcp.kubernetes.default.svc.cluster.local", "SRV", "NXDOMAIN aa soa"},
	{"_tcp.kubernetes.default.svc.cluster.local", "SRV", "NOERROR aa soa"},
	{"_b._udp.dual.default.svc.cluster.local", "SRV",
		"NOERROR aa\n_b._udp.dual.default.svc.cluster.local. SRV 0 100 2 dual.default.svc.cluster.local."},
	{"dual.default.svc.cluster.local", "SRV",
		"NOERROR aa\ndual.default.svc.cluster.local. SRV 0 100 1 dual.default.svc.cluster.local.\ndual.default.svc.cluster.local. SRV 0 100 2 dual.default.svc.cluster.local."},
	{"10-42-0-40.kubernetes.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	{"1.0.43.10.in-addr.arpa", "PTR", "NOERROR aa\n1.0.43.10.in-addr.arpa. PTR kubernetes.default.svc.cluster.local."},
	{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.0.0.0.0.d.f.ip6.arpa", "PTR",
		"NOERROR aa\n2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.0.0.0.0.d.f.ip6.arpa. PTR dual.default.svc.cluster.local."},
	{"1.0.43.10.in-addr.arpa", "A", "NOERROR aa soa"},
	{"99.0.43.10.in-addr.arpa", "PTR", "NXDOMAIN aa soa"},
	// Headless services.
	{"headless.default.svc.cluster.local", "A",
		"NOERROR aa\nheadless.default.svc.cluster.local. A 10.42.0.10\nheadless.default.svc.cluster.local. A 10.42.0.11"},
	{"headless.default.svc.cluster.local", "AAAA",
		"NOERROR aa\nheadless.default.svc.cluster.local. AAAA fd00:42::\nheadless.default.svc.cluster.local. AAAA fd00:42::10"},
	{"db-0.headless.default.svc.cluster.local", "A",
		"NOERROR aa\ndb-0.headless.default.svc.cluster.local. A 10.42.0.10"},
	{"db-0.headless.default.svc.cluster.local", "AAAA",
		"NOERROR aa\ndb-0.headless.default.svc.cluster.local. AAAA fd00:42::10"},
	{"db-2.headless.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	{"10-42-0-11.headless.default.svc.cluster.local", "A",
		"NOERROR aa\n10-42-0-11.headless.default.svc.cluster.local. A 10.42.0.11"},
	{"10-42-0-11.headless.default.svc.cluster.local", "AAAA", "NOERROR aa soa"},
	{"fd00-0042-0000-0000-0000-0000-0000-0000.headless.default.svc.cluster.local", "AAAA",
		"NOERROR aa\nfd00-0042-0000-0000-0000-0000-0000-0000.headless.default.svc.cluster.local. AAAA fd00:42::"},
	{"_http._tcp.headless.default.svc.cluster.local", "SRV", "NOERROR aa\n" +
		"_http._tcp.headless.default.svc.cluster.local. SRV 0 100 8080 10-42-0-11.headless.default.svc.cluster.local.\n" +
		"_http._tcp.headless.default.svc.cluster.local. SRV 0 100 8080 db-0.headless.default.svc.cluster.local.\n" +
		"_http._tcp.headless.default.svc.cluster.local. SRV 0 100 8080 fd00-0042-0000-0000-0000-0000-0000-0000.headless.default.svc.cluster.local."},
	{"_tcp.headless.default.svc.cluster.local", "A", "NOERROR aa soa"},
	{"_none._tcp.headless.default.svc.cluster.local", "SRV", "NXDOMAIN aa soa"},
	{"10.0.42.10.in-addr.arpa", "PTR",
		"NOERROR aa\n10.0.42.10.in-addr.arpa. PTR db-0.headless.default.svc.cluster.local."},
	{"12.0.42.10.in-addr.arpa", "PTR", "NXDOMAIN aa soa"},
	{"40.0.42.10.in-addr.arpa", "PTR", "NXDOMAIN aa soa"},
	{"unready.default.svc.cluster.local", "A", "NOERROR aa\nunready.default.svc.cluster.local. A 10.42.0.20"},
	{"u-0.unready.default.svc.cluster.local", "A", "NOERROR aa\nu-0.unready.default.svc.cluster.local. A 10.42.0.20"},
	{"nobody.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	// External names.
	{"out.default.svc.cluster.local", "CNAME", "NOERROR aa\nout.default.svc.cluster.local. CNAME www.example.com."},
	{"out.default.svc.cluster.local", "A",
		"NOERROR aa\nout.default.svc.cluster.local. CNAME www.example.com.\nwww.example.com. A 192.0.2.80"},
	{"in.default.svc.cluster.local", "A",
		"NOERROR aa\nin.default.svc.cluster.local. CNAME kubernetes.default.svc.cluster.local.\nkubernetes.default.svc.cluster.local. A 10.43.0.1"},
	{"loop.default.svc.cluster.local", "A", "SERVFAIL aa soa"},
	{"gone.default.svc.cluster.local", "A",
		"NXDOMAIN aa soa\ngone.default.svc.cluster.local. CNAME missing.example.com."},
	{"x.out.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	// Pods.
	{"10-42-0-5.default.pod.cluster.local", "A", "NOERROR aa\n10-42-0-5.default.pod.cluster.local. A 10.42.0.5"},
	{"10-42-0-5.default.pod.cluster.local", "AAAA", "NOERROR aa soa"},
	{"fd00-42--5.default.pod.cluster.local", "AAAA",
		"NOERROR aa\nfd00-42--5.default.pod.cluster.local. AAAA fd00:42::5"},
	{"10-42-0-5.nowhere.pod.cluster.local", "A", "NXDOMAIN aa soa"},
	{"web.default.pod.cluster.local", "A", "NXDOMAIN aa soa"},
	{"default.pod.cluster.local", "A", "NOERROR aa soa"},
	// Names to which resolvers appended search domains.
	{"www.example.com.default.svc.cluster.local", "A", "NXDOMAIN aa soa"},
	{"www.example.com.cluster.local", "A", "NXDOMAIN aa soa"},
	{"missing.default.svc.cluster.local.wildcard.lan", "A", "NXDOMAIN"},
	// The rest of the world.
	{"www.example.com", "A", "NOERROR\nwww.example.com. A 192.0.2.80"},
	{"www.example.com", "AAAA", "NXDOMAIN soa"},
	{"notcluster.local", "A", "NXDOMAIN soa"},
}

func TestServer_Specification(t *testing.T) {
	up := startUpstream(t)
	s, _ := startServer(t, nil,
		append(clusterObjects(), settingsMap(map[string]string{"upstreams": up.addr.String()}))...)
	waitForUpstream(t, s)
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range specification {
			t.Run(network+"/"+c.name+"/"+c.qtype, func(t *testing.T) {
				got := brief(query(t, s, network, c.name, c.qtype, func(m *wire.Msg) { m.SetEdns0(ednsSize, false) }))
				want := strings.Replace(c.want, "SERIAL", fmt.Sprint(s.zone.start), 1)
				if got != want {
					t.Errorf("got:\n%s\nwant:\n%s", got, want)
				}
			})
		}
	}
}

func settingsMap(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: SettingsNamespace, Name: SettingsName,
		ResourceVersion: "7"}, Data: data}
}

// waitForUpstream waits until settings with an upstream are applied.
func waitForUpstream(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, func() string {
		if s.settings.Load().upstreams == nil {
			return "settings were not applied"
		}
		return ""
	})
}

// eventually waits until check returns "", or fails the test with its last result.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
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

func TestServer_Run_FollowsChanges(t *testing.T) {
	s, client := startServer(t, nil, clusterObjects()...)
	ctx := context.Background()
	want := func(name, want string) {
		t.Helper()
		eventually(t, func() string {
			if got := brief(query(t, s, "udp", name, "A", nil)); got != want {
				return fmt.Sprintf("%s: got %q, want %q", name, got, want)
			}
			return ""
		})
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new", ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.43.7.7"}}
	if _, err := client.CoreV1().Services("default").Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("new.default.svc.cluster.local", "NOERROR aa\nnew.default.svc.cluster.local. A 10.43.7.7")
	// The slice comes before its service.
	slice := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       "default",
			Name:            "late-1",
			ResourceVersion: "1",
			Labels:          map[string]string{discovery.LabelServiceName: "late"},
		},
		AddressType: discovery.AddressTypeIPv4, Endpoints: []discovery.Endpoint{{Addresses: []string{"10.42.5.5"}}},
	}
	if _, err := client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	late := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "late", ResourceVersion: "1"},
		Spec: corev1.ServiceSpec{ClusterIP: "None"}}
	if _, err := client.CoreV1().Services("default").Create(ctx, late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("late.default.svc.cluster.local", "NOERROR aa\nlate.default.svc.cluster.local. A 10.42.5.5")
	slice = slice.DeepCopy()
	slice.ResourceVersion = "2"
	slice.Endpoints[0].Addresses = []string{"10.42.5.6"}
	if _, err := client.DiscoveryV1().EndpointSlices("default").Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("late.default.svc.cluster.local", "NOERROR aa\nlate.default.svc.cluster.local. A 10.42.5.6")
	for _, n := range []string{"new", "late"} {
		if err := client.CoreV1().Services("default").Delete(ctx, n, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		want(n+".default.svc.cluster.local", "NXDOMAIN aa soa")
	}
	if got := s.live.namesOf(netip.MustParseAddr("10.43.7.7")); len(got) != 0 {
		t.Errorf("a deleted service's address still has names: %v", got)
	}
}

func TestServer_Run_AnswersFromItsCheckpoint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "dns.gz")
	with := func(c *Config) { c.CheckpointFile = file }
	first, _ := startServer(t, with, clusterObjects()...)
	want := make(map[string]string)
	names := []string{"kubernetes.default.svc.cluster.local", "headless.default.svc.cluster.local",
		"db-0.headless.default.svc.cluster.local", "10-42-0-5.default.pod.cluster.local"}
	for _, n := range names {
		want[n] = brief(query(t, first, "udp", n, "A", nil))
	}
	text, err := first.live.encode("cluster.local.")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeCheckpoint(file, text); err != nil {
		t.Fatal(err)
	}

	// The next start finds an API server that does not answer.
	c := first.cfg
	client := fake.NewClientset()
	client.PrependReactor("*", "*", unreachableAPI)
	packets, streams := listenBoth(t)
	c.Client, c.ListenAddrs = client, []string{packets.LocalAddr().String()}
	packets.Close()
	streams.Close()
	second, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	stop := runServer(t, second)
	for _, n := range names {
		if got := brief(query(t, second, "udp", n, "A", nil)); got != want[n] {
			t.Errorf("%s: got %q, want %q", n, got, want[n])
		}
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	after, err := os.ReadFile(file)
	if err != nil || string(before) != string(after) {
		t.Errorf("the checkpoint was overwritten by a server that knew less (%v)", err)
	}
}

func TestServer_Run_WritesItsCheckpointWhenItStops(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dns.gz")
	client := fake.NewClientset(clusterObjects()...)
	packets, streams := listenBoth(t)
	addr := packets.LocalAddr().String()
	packets.Close()
	streams.Close()
	s, err := New(Config{
		Client:         client,
		NodeName:       "n1",
		ListenAddrs:    []string{addr},
		Interface:      "-",
		CheckpointFile: file,
	})
	if err != nil {
		t.Fatal(err)
	}
	runServer(t, s)()
	x, err := readCheckpoint(file, "cluster.local.")
	if err != nil {
		t.Fatal(err)
	}
	if len(x.services) != len(s.live.services) || len(x.slices) != len(s.live.slices) || !x.hasNamespace("empty") {
		t.Errorf("checkpoint holds %d services and %d slices", len(x.services), len(x.slices))
	}

	// The next start finds the same cluster, and does not write.
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	again := func() os.FileInfo {
		s, err := New(s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		stop := runServer(t, s)
		eventually(t, func() string {
			if s.names.Load() != s.live {
				return "it does not answer from the informers"
			}
			return ""
		})
		stop()
		after, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return after
	}
	if !os.SameFile(before, again()) {
		t.Error("the same checkpoint was written again")
	}
	if err := client.Tracker().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}}); err != nil {
		t.Fatal(err)
	}
	if os.SameFile(before, again()) {
		t.Error("a changed checkpoint was not written")
	}
}

func TestReadCheckpoint_RefusesDamage(t *testing.T) {
	dir := t.TempDir()
	x := newIndex(func() {})
	x.setNamespace("default", true)
	text, err := x.encode("cluster.local.")
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good")
	if err := writeCheckpoint(good, text); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)/2],
		"other": []byte("not gzip at all")} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readCheckpoint(path, "cluster.local."); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := readCheckpoint(good, "other.domain."); err == nil {
		t.Error("checkpoint of another domain: no error")
	}
}

// watchedFactory records what a user of a shared factory does to it.
type watchedFactory struct {
	informers.SharedInformerFactory
	started   []<-chan struct{}
	shutdowns int
}

func (f *watchedFactory) Start(stop <-chan struct{}) {
	f.started = append(f.started, stop)
	f.SharedInformerFactory.Start(stop)
}

func (f *watchedFactory) Shutdown() { f.shutdowns++ }

// The informers keep running for the other parts of the process, and no longer call a server that
// has ended.
func TestServer_Run_DoesNotEndSharedInformers(t *testing.T) {
	client := fake.NewClientset(clusterObjects()...)
	shared := informer.NewShared(informers.NewSharedInformerFactory(client, 0))
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- shared.Run(ctx) }()
	defer func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	factory := &watchedFactory{SharedInformerFactory: shared}
	config := Config{
		Client:      client,
		Informers:   factory,
		NodeName:    "n1",
		Interface:   "-",
		ListenAddrs: []string{freeAddr(t)},
	}
	start := func() (*Server, func()) {
		s, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		return s, runServer(t, s)
	}
	first, stop := start()
	stop()
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new", ResourceVersion: "1"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.43.7.7"},
	}
	if _, err := client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	second, _ := start()
	want := "NOERROR aa\nnew.default.svc.cluster.local. A 10.43.7.7"
	eventually(t, func() string {
		if got := brief(query(t, second, "udp", "new.default.svc.cluster.local", "A", nil)); got != want {
			return "the second server answers " + got
		}
		return ""
	})
	if first.live.service(key{"default", "new"}) != nil {
		t.Error("the informers still feed the first server")
	}
	for _, c := range factory.started {
		select {
		case <-c:
			t.Error("the informers were started for as long as the server runs")
		default:
		}
	}
	if factory.shutdowns > 0 {
		t.Error("the factory was shut down")
	}
}

// A host whose resolvers pods cannot reach is reported once, with what to do, and as long as that
// lasts in the note for `mote status`.
func TestServer_Note_NamesOutsideDoNotResolve(t *testing.T) {
	for _, row := range []struct {
		name, text string
		level      zapcore.Level
		found      string
	}{
		{"on 127.0.0.1", "nameserver 127.0.0.1\n", zap.WarnLevel, "(127.0.0.1)"},
		{"on ::1", "nameserver ::1\n", zap.WarnLevel, "(::1)"},
		{"systemd's stub", "nameserver 127.0.0.53\n", zap.WarnLevel, "(127.0.0.53)"},
		{"several stubs", "nameserver 127.0.0.1\nnameserver ::1\n", zap.WarnLevel, "(127.0.0.1, ::1)"},
		{"no network yet", "", zap.InfoLevel, "no resolver"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(file, []byte(row.text), 0o644); err != nil {
				t.Fatal(err)
			}
			core, logged := observer.New(zap.InfoLevel)
			s, client := startServer(t, func(c *Config) { c.Resolvers, c.Logger = []string{file}, zap.New(core) })
			said := func() *observer.ObservedLogs {
				return logged.Filter(func(e observer.LoggedEntry) bool {
					return strings.HasPrefix(e.Message, "names outside of the cluster do not resolve")
				})
			}
			eventually(t, func() string {
				if said().Len() != 1 {
					return fmt.Sprintf("%d lines", said().Len())
				}
				return ""
			})
			line := said().All()[0]
			if line.Level != row.level || !strings.Contains(line.Message, row.found) ||
				!strings.Contains(line.Message, "--resolv-conf") || !strings.Contains(line.Message, "upstreams") {
				t.Errorf("%s: %s", line.Level, line.Message)
			}
			if s.Note() != line.Message {
				t.Errorf("note is %q", s.Note())
			}
			// Resolvers in the settings end it.
			if _, err := client.CoreV1().ConfigMaps(SettingsNamespace).Create(t.Context(),
				settingsMap(map[string]string{"upstreams": "192.0.2.1"}), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, s.Note)
		})
	}
	t.Run("with resolvers in the settings", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(file, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		core, logged := observer.New(zap.InfoLevel)
		s, _ := startServer(t, func(c *Config) { c.Resolvers, c.Logger = []string{file}, zap.New(core) },
			settingsMap(map[string]string{"upstreams": "192.0.2.1"}))
		eventually(t, func() string {
			if !s.settingsKnown.Load() {
				return "settings were not read"
			}
			return ""
		})
		for _, e := range logged.All() {
			if e.Level > zap.InfoLevel || strings.Contains(e.Message, "do not resolve") {
				t.Errorf("logged %s: %s", e.Level, e.Message)
			}
		}
	})
}
