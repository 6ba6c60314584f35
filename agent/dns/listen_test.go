package dns

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes/fake"
)

// stopBound is how long a server without open queries may take to stop.
const stopBound = time.Second

// noLeaks fails the test unless the goroutines started from now on have ended when it does.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goruntime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, func() string {
			if goruntime.NumGoroutine() <= before {
				return ""
			}
			stacks := make([]byte, 1<<20)
			return "goroutines are left:\n" + string(stacks[:goruntime.Stack(stacks, true)])
		})
	})
}

// freeAddr returns a loopback address with a free port.
func freeAddr(t *testing.T) string {
	t.Helper()
	packets, streams := listenBoth(t)
	defer packets.Close()
	defer streams.Close()
	return packets.LocalAddr().String()
}

// miekg/dns ignores a shutdown before it serves, and then serves for ever.
func TestServer_Run_StopsWheneverItIsCancelled(t *testing.T) {
	noLeaks(t)
	client := fake.NewClientset()
	addr := freeAddr(t)
	for i := range 400 {
		s, err := New(Config{
			Client:      client,
			NodeName:    "n1",
			ListenAddrs: []string{addr},
			Interface:   "-",
			Resolvers:   []string{"/none"},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		for range rand.N(200) {
			goruntime.Gosched()
		}
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("start %d: %v", i, err)
			}
		case <-time.After(stopBound):
			stacks := make([]byte, 1<<20)
			t.Fatalf("start %d has not ended %s after it was cancelled:\n%s", i, stopBound,
				stacks[:goruntime.Stack(stacks, true)])
		}
	}
}

func TestServer_Run_ListenerFails_EndsAll(t *testing.T) {
	noLeaks(t)
	packets, streams := listenBoth(t)
	defer streams.Close()
	taken := packets.LocalAddr().String()
	packets.Close()
	free := freeAddr(t)
	s, err := New(Config{
		Client:      fake.NewClientset(),
		NodeName:    "n1",
		ListenAddrs: []string{free, taken},
		Interface:   "-",
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	select {
	case err = <-done:
	case <-time.After(stopBound):
		t.Fatal("it has not ended")
	}
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), taken) {
		t.Errorf("error is %v, want one about %s", err, taken)
	}
	for _, addr := range []string{free, taken} {
		p, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Errorf("the socket is still open: %v", err)
			continue
		}
		p.Close()
	}
}

// A socket that breaks before its server reads from it ends the others, which may not serve either
// yet.
func TestServer_Run_ServerFailsBeforeItStarts_EndsAll(t *testing.T) {
	noLeaks(t)
	all, err := bind(t.Context(), []netip.AddrPort{netip.MustParseAddrPort(freeAddr(t))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := all[0], all[1]
	defer tcp.close()
	udp.server.PacketConn.Close()
	done := make(chan error, 1)
	go func() { done <- udp.serve(t.Context()) }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("serving a closed socket is no error")
		}
	case <-time.After(stopBound):
		t.Fatal("it has not ended")
	}
}

// An idle client must not hold up the stop.
func TestServer_Run_StopsWithIdleConnections(t *testing.T) {
	s, err := New(Config{
		Client:      fake.NewClientset(),
		NodeName:    "n1",
		ListenAddrs: []string{freeAddr(t)},
		Interface:   "-",
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := runServer(t, s)
	conn, err := net.Dial("tcp", s.listen[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := &wire.Conn{Conn: conn}
	if err := client.WriteMsg(new(wire.Msg).SetQuestion("cluster.local.", wire.TypeSOA)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > stopBound {
		t.Errorf("stopping took %s", took)
	}
	if _, err := client.ReadMsg(); err == nil {
		t.Error("the connection outlives its server")
	}
}

// Queries that no resolver answers hold a stop up for as long as clients would wait, and no longer.
func TestListener_Serve_DropsOpenQueries(t *testing.T) {
	noLeaks(t)
	entered := make(chan struct{})
	addr := netip.MustParseAddrPort(freeAddr(t))
	all, err := bind(t.Context(), []netip.AddrPort{addr},
		func(ctx context.Context, _ wire.ResponseWriter, _ *wire.Msg) {
			close(entered)
			<-ctx.Done()
		})
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := all[0], all[1]
	defer tcp.close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- udp.serve(ctx) }()
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := (&wire.Conn{Conn: conn}).WriteMsg(new(wire.Msg).SetQuestion("x.example.", wire.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(stopTimeout + stopBound):
		t.Error("an open query keeps the server from stopping")
	}
}

// listenerFunc is a listener whose Accept is a function.
type listenerFunc func() (net.Conn, error)

func (f listenerFunc) Accept() (net.Conn, error) { return f() }
func (f listenerFunc) Close() error              { return nil }
func (f listenerFunc) Addr() net.Addr            { return nil }

func TestStreamListener_Accept(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	ours, theirs := net.Pipe()
	results := []error{&net.OpError{Op: "accept", Err: unix.EMFILE}, &net.OpError{Op: "accept", Err: unix.ENFILE}, nil,
		net.ErrClosed}
	l := &streamListener{ctx: ctx, Listener: listenerFunc(func() (net.Conn, error) {
		err := results[0]
		results = results[1:]
		return ours, err
	})}
	if _, err := l.Accept(); err != nil {
		t.Fatalf("out of file descriptors for a moment: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("a closed listener: %v", err)
	}
	end()
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives its server")
	}
}
