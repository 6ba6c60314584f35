package tunneltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	agent "github.com/mote-dev/mote/agent/tunnel"
	"github.com/mote-dev/mote/internal/joinapi"
	server "github.com/mote-dev/mote/server/tunnel"
)

const (
	nodeName = "agent1"
	// Pods have addresses of the loopback device that are not the machine's own.
	podRange = "127.77.1.0/24"
	podIP    = "127.77.1.5"
	patience = time.Minute
)

// world is a server and a node on loopback, with a wire between them that can be cut.
type world struct {
	t      *testing.T
	server *server.Server
	front  *httptest.Server
	wire   *wire
	known  *known
	nodes  *nodeFeed
	logs   *observer.ObservedLogs
	cert   renewal
	// stopServer and stopAgent return once everything has ended.
	stopServer, stopAgent func()
}

// setting changes what a world is made of.
type setting struct {
	server func(*server.Config)
	agent  func(*agent.Config)
	// kubelet serves the node's kubelet; nil means an echo.
	kubelet func(*net.TCPConn)
	// offline leaves the agent out.
	offline bool
}

func newWorld(t *testing.T, s setting) *world {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	w := &world{t: t, nodes: &nodeFeed{}, cert: renewal{next: make(chan struct{})}}

	sc := server.Config{
		Nodes:       w.nodes,
		Wait:        patience,
		PingAfter:   2 * time.Second,
		PingTimeout: 2 * time.Second,
	}
	if s.server != nil {
		s.server(&sc)
	}
	var err error
	if w.server, err = server.New(sc); err != nil {
		t.Fatal(err)
	}
	w.stopServer = background(t, w.server.Run)
	w.front = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != joinapi.PathTunnel {
			http.NotFound(rw, r)
			return
		}
		w.server.ServeNode(rw, r, nodeName)
	}))
	w.front.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	w.front.EnableHTTP2 = true
	w.front.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.front.StartTLS()
	t.Cleanup(w.front.Close)
	w.wire = newWire(t, w.front.Listener.Addr().String())

	kubelet := s.kubelet
	if kubelet == nil {
		kubelet = echo
	}
	kubeletAddress := listen(t, "127.0.0.1:0", kubelet)
	w.nodes.add(nodeName, "192.0.2.10", podRange)
	w.known = &known{
		servers: []string{w.wire.address},
		next:    make(chan struct{}),
		online:  make(chan struct{}),
		offline: make(chan struct{}),
	}
	close(w.known.online)
	core, logs := observer.New(zapcore.DebugLevel)
	w.logs = logs
	ac := agent.Config{
		Servers:     w.known,
		Renewed:     w.cert.Renewed,
		Kubelet:     kubeletAddress,
		TLS:         w.tls,
		PodCIDRs:    func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(podRange)} },
		PingAfter:   2 * time.Second,
		PingTimeout: 2 * time.Second,
		FirstRetry:  10 * time.Millisecond,
		LastRetry:   100 * time.Millisecond,
		Logger:      zap.New(core),
	}
	if s.agent != nil {
		s.agent(&ac)
	}
	a, err := agent.New(ac)
	if err != nil {
		t.Fatal(err)
	}
	w.stopAgent = func() {}
	if !s.offline {
		w.stopAgent = background(t, a.Run)
	}
	return w
}

// tls is how a node makes sure of its server.
func (w *world) tls() *tls.Config {
	return &tls.Config{RootCAs: w.front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs,
		ServerName: "kubernetes"}
}

// background runs until the returned function or the end of the test.
func background(t *testing.T, run func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test"},
		DNSNames:              []string{"kubernetes", "example.com"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// dial connects through the world's server and fails the test if that does.
func (w *world) dial(address string) half {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := w.server.DialContext(ctx, "tcp", address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	h, ok := conn.(half)
	if !ok {
		w.t.Fatalf("%T cannot close one half", conn)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) dialKubelet() half { w.t.Helper(); return w.dial(nodeName + ":10250") }

// waitLog waits until the agent has logged a line so many times.
func (w *world) waitLog(message string, times int) {
	w.t.Helper()
	eventually(w.t, func() bool { return w.logs.FilterMessage(message).Len() >= times },
		"the log never says %d times %q: %v", times, message, w.logs.All())
}

func eventually(t *testing.T, condition func() bool, format string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf(format, args...)
		}
		<-ticker.C
	}
}

type half interface {
	net.Conn
	CloseWrite() error
}

// listen serves a TCP address until the test ends.
func listen(t *testing.T, address string, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}

// echo sends back what it reads, and its end.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// wire passes on TCP connections until it is cut or stalled.
type wire struct {
	address string
	to      string

	mu      sync.Mutex // guards what follows
	open    []net.Conn
	flowing chan struct{} // closed while bytes pass
	count   int
}

func newWire(t *testing.T, to string) *wire {
	w := &wire{to: to, flowing: make(chan struct{})}
	close(w.flowing)
	w.address = listen(t, "127.0.0.1:0", w.pass)
	t.Cleanup(func() { w.heal(); w.cut() })
	return w
}

func (w *wire) pass(in *net.TCPConn) {
	out, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer out.Close()
	w.mu.Lock()
	w.open = append(w.open, in, out)
	w.count++
	w.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			defer way[0].Close()
			defer way[1].Close()
			buf := make([]byte, 32<<10)
			for {
				n, err := way[0].Read(buf)
				w.mu.Lock()
				flowing := w.flowing
				w.mu.Unlock()
				<-flowing
				if err != nil {
					return
				}
				if _, err := way[1].Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}

// cut ends all connections.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.open {
		_ = c.Close()
	}
	w.open = nil
}

// stall lets nothing pass, not even that a connection ended.
func (w *wire) stall() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flowing = make(chan struct{})
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.flowing:
	default:
		close(w.flowing)
	}
}

func (w *wire) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// known are the servers a node knows.
type known struct {
	mu              sync.Mutex // guards what follows
	servers         []string
	next            chan struct{}
	online, offline chan struct{}
}

var _ agent.Servers = (*known)(nil)

func (k *known) Servers() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.servers)
}

func (k *known) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.next
}

func (k *known) Online() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.online
}

func (k *known) Offline() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.offline
}

func (k *known) set(servers ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.servers = servers
	close(k.next)
	k.next = make(chan struct{})
}

// setOnline says whether a server answers.
func (k *known) setOnline(up bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if up {
		close(k.online)
		k.offline = make(chan struct{})
	} else {
		close(k.offline)
		k.online = make(chan struct{})
	}
}

// renewal is when a node's certificate changes.
type renewal struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

func (r *renewal) Renewed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

func (r *renewal) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.next)
	r.next = make(chan struct{})
}

// nodeFeed is an informer of nodes as far as the server uses one.
type nodeFeed struct {
	cache.SharedIndexInformer
	handler cache.ResourceEventHandler
}

func (f *nodeFeed) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	f.handler = h
	return nil, nil
}

func (f *nodeFeed) add(name, ip, cidr string) {
	f.handler.OnAdd(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip},
			{Type: corev1.NodeHostName, Address: name}}},
	}, false)
}

// addKubelet adds a node whose kubelet listens on the port of address.
func (f *nodeFeed) addKubelet(name, ip, address string) {
	port := netip.MustParseAddrPort(address).Port()
	f.handler.OnAdd(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
		},
	}, false)
}

func noRanges() []netip.Prefix { return nil }
