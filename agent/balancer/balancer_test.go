package balancer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// server starts a TLS server and returns its address and the trust in it.
func server(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	return s, s.Listener.Addr().String()
}

func trusting(servers ...*httptest.Server) func() *tls.Config {
	pool := x509.NewCertPool()
	for _, s := range servers {
		pool.AddCert(s.Certificate())
	}
	return func() *tls.Config { return &tls.Config{RootCAs: pool, ServerName: "example.com"} }
}

// closed returns an address at which nothing listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestBalancer_DialTLS_FailsOverAndRemembers(t *testing.T) {
	s, address := server(t)
	b := New(Config{Servers: []string{closed(t), address}, TLS: trusting(s)})
	conn, err := b.DialTLS(t.Context(), "tcp", "ignored:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != address || b.Servers()[0] != address {
		t.Errorf("connected to %s, next attempt goes to %s, want %s", conn.RemoteAddr(), b.Servers()[0], address)
	}
	b.CloseAll()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after CloseAll: %v", err)
	}
}

// Addresses has what is behind a server's name, too, once it is verified, and forgets servers that
// are no longer known.
func TestBalancer_Addresses(t *testing.T) {
	s, address := server(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	name := net.JoinHostPort("localhost", port)
	b := New(Config{Servers: []string{name}, TLS: trusting(s)})
	if got := b.Addresses(); !slices.Equal(got, []string{name}) {
		t.Errorf("before a connection %q", got)
	}
	conn, err := b.DialTLS(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := b.Addresses(); !slices.Equal(got, []string{name, address}) {
		t.Errorf("after a connection %q, want %q as well", got, address)
	}
	b.CloseAll()
	b.Set([]string{"192.0.2.1:6443"})
	if got := b.Addresses(); !slices.Equal(got, []string{"192.0.2.1:6443"}) {
		t.Errorf("with another server %q", got)
	}
}

func TestBalancer_DialTLS_RefusesStrangers(t *testing.T) {
	_, address := server(t)
	b := New(Config{Servers: []string{address},
		TLS: func() *tls.Config { return &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"} }})
	if _, err := b.DialTLS(t.Context(), "tcp", ""); !errors.Is(err, ErrOffline) || b.Up() {
		t.Errorf("a server of an unknown CA: %v, up %v", err, b.Up())
	}
}

func TestBalancer_Run_FindsDiscoveredServer(t *testing.T) {
	s, address := server(t)
	found := make(chan string, 1)
	old := closed(t)
	b := New(Config{
		Servers:  []string{old},
		TLS:      trusting(s),
		Discover: func(context.Context) []string { return []string{old, address} },
		Found:    func(s string) { found <- s },
	})
	if _, err := b.DialTLS(t.Context(), "tcp", ""); !errors.Is(err, ErrOffline) {
		t.Fatalf("dial with no server: %v", err)
	}
	online := b.Online()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	select {
	case <-online:
	case <-ctx.Done():
		t.Fatal("the discovered server was not tried")
	}
	if got := <-found; got != address || !slices.Contains(b.Servers(), old) {
		t.Errorf("found %s, knows %v; want %s beside the old one", got, b.Servers(), address)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBalancer_Set_KeepsTheOneInUse(t *testing.T) {
	b := New(Config{Servers: []string{"b:1", "a:1"}})
	b.Set([]string{"a:1", "b:1", "c:1"})
	if got := b.Servers(); !slices.Equal(got, []string{"b:1", "a:1", "c:1"}) {
		t.Errorf("servers are %v", got)
	}
	b.Set(nil)
	if len(b.Servers()) != 3 {
		t.Error("an empty list took all servers away")
	}
}

// Changed fires for another set of servers, not for another order.
func TestBalancer_Changed(t *testing.T) {
	away := closed(t)
	s, address := server(t)
	b := New(Config{Servers: []string{away, address}, TLS: trusting(s)})
	closedNow := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	changed := b.Changed()
	b.Set([]string{address, away})
	conn, err := b.DialTLS(t.Context(), "tcp", "ignored:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if closedNow(changed) {
		t.Error("another order counts as a change")
	}
	b.Set([]string{address})
	if !closedNow(changed) || closedNow(b.Changed()) {
		t.Error("the loss of a server fired Changed not once")
	}
}

// A process without a free file descriptor has lost none of its servers.
func TestBalancer_DialTLS_OutOfFileDescriptors_StaysOnline(t *testing.T) {
	s, address := server(t)
	b := New(Config{Servers: []string{address}, TLS: trusting(s)})
	b.dialer.Control = func(string, string, syscall.RawConn) error { return syscall.EMFILE }
	if _, err := b.DialTLS(t.Context(), "tcp", ""); !errors.Is(err, syscall.EMFILE) || errors.Is(err, ErrOffline) ||
		!b.Up() {
		t.Errorf("error is %v, up %v", err, b.Up())
	}
	b.dialer.Control = nil
	conn, err := b.DialTLS(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// A server that gets another address every day is found again each time.
func TestBalancer_Servers_AreBounded(t *testing.T) {
	b := New(Config{})
	for i := range 3 * maxServers {
		b.mu.Lock()
		b.prefer(fmt.Sprintf("192.0.2.%d:6443", i))
		b.mu.Unlock()
	}
	if got := b.Servers(); len(got) != maxServers || got[0] != fmt.Sprintf("192.0.2.%d:6443", 3*maxServers-1) {
		t.Errorf("%d servers are known, %s first", len(got), got[0])
	}
}

// A client that outlives Run must not leave a connection behind, and a node that stops has not lost
// its server.
func TestBalancer_DialTLS_AfterRun_LeavesNoConnection(t *testing.T) {
	s, address := server(t)
	core, logs := observer.New(zap.WarnLevel)
	b := New(Config{Servers: []string{address}, TLS: trusting(s), Logger: zap.New(core)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DialTLS(t.Context(), "tcp", ""); !errors.Is(err, errStopped) {
		t.Errorf("error is %v, want %v", err, errStopped)
	}
	if len(b.open) != 0 {
		t.Errorf("%d connections are open", len(b.open))
	}
	for _, line := range logs.All() {
		t.Errorf("a stopped balancer logs %q", line.Message)
	}
}
