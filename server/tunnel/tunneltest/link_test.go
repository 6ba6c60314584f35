package tunneltest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	agent "github.com/mote-dev/mote/agent/tunnel"
	"github.com/mote-dev/mote/internal/joinapi"
	server "github.com/mote-dev/mote/server/tunnel"
)

const (
	saidOpen = "tunnel to server is open"
	saidLost = "tunnel to server lost, connecting again"
	saidBack = "tunnel to server is back"
)

// ping makes sure that a connection works.
func ping(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// Cut at any moment, with streams under way, the tunnel comes back and leaves nothing behind;
// newWorld looks for goroutines at the end.
func TestTunnel_CutAtRandom_ComesBack(t *testing.T) {
	w := newWorld(t, setting{})
	for round := range 30 {
		var streams sync.WaitGroup
		for range 8 {
			c := w.dialKubelet()
			streams.Go(func() {
				defer c.Close()
				data := make([]byte, 256<<10)
				for {
					if _, err := c.Write(data); err != nil {
						return
					}
				}
			})
			streams.Go(func() {
				_, err := io.Copy(io.Discard, c)
				if err == nil {
					t.Error("a cut connection looks like one that ended well")
				}
			})
		}
		timer := time.NewTimer(rand.N(20 * time.Millisecond))
		<-timer.C
		w.wire.cut()
		streams.Wait()
		w.waitLog(saidLost, round+1)
		w.waitLog(saidBack, round+1)
	}
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
	if n := w.logs.FilterMessage(saidOpen).Len(); n != 1 {
		t.Errorf("the log says %d times that the tunnel is open", n)
	}
}

// With a new certificate there is a new connection; what goes through the old one is not disturbed,
// and then it ends.
func TestTunnel_Renewed_ReplacesConnection(t *testing.T) {
	w := newWorld(t, setting{})
	old := w.dialKubelet()
	w.cert.renew()
	w.waitLog(saidOpen, 2)
	// The agent knows of it a moment before the server does.
	var next half
	eventually(t, func() bool {
		next = w.dialKubelet()
		if next.RemoteAddr().String() != old.RemoteAddr().String() {
			return true
		}
		_ = next.Close()
		return false
	}, "new streams still go through the connection from %s", old.RemoteAddr())
	for _, c := range []net.Conn{old, next} {
		if err := ping(c); err != nil {
			t.Error(err)
		}
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	if err := ping(next); err != nil {
		t.Error(err)
	}
	if n := w.logs.FilterMessage(saidLost).Len(); n != 0 {
		t.Error("replacing counts as losing")
	}
}

// A server known under several addresses has one tunnel, not one that two keepers take from each
// other without end.
func TestTunnel_TwoAddressesOfOneServer_OneTunnel(t *testing.T) {
	w := newWorld(t, setting{})
	w.waitLog(saidOpen, 1)
	c := w.dialKubelet()
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	second := newWire(t, w.front.Listener.Addr().String())
	w.known.set(w.wire.address, second.address)
	eventually(t, func() bool { return second.connections() >= 1 }, "the second address is never tried")
	// The one address being gone, the other one serves.
	w.known.set(second.address)
	w.waitLog(saidOpen, 2)
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
	if w.wire.connections() != 1 || second.connections() > 3 {
		t.Errorf("%d and %d connections were made", w.wire.connections(), second.connections())
	}
}

// A server that is away does not keep another one from being connected.
func TestTunnel_OneServerAway_OtherServes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it takes connections and says nothing
	w := newWorld(t, setting{offline: true})
	w.known.set(l.Addr().String(), w.wire.address)
	a, err := agent.New(agent.Config{
		Servers:  w.known,
		TLS:      w.tls,
		Renewed:  w.cert.Renewed,
		Kubelet:  listen(t, "127.0.0.1:0", echo),
		PodCIDRs: noRanges,
	})
	if err != nil {
		t.Fatal(err)
	}
	background(t, a.Run)
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
}

// A server that is back is connected at once, not when the wait is over.
func TestTunnel_ServerBack_ConnectsAtOnce(t *testing.T) {
	w := newWorld(t, setting{agent: func(c *agent.Config) { c.FirstRetry, c.LastRetry = time.Hour, time.Hour }})
	w.waitLog(saidOpen, 1)
	w.wire.cut()
	w.waitLog(saidLost, 1)
	w.known.setOnline(false)
	w.known.setOnline(true)
	w.waitLog(saidBack, 1)
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
}

func TestTunnel_Disconnect_EndsStreams(t *testing.T) {
	w := newWorld(t, setting{})
	c := w.dialKubelet()
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	w.cert.renew()
	w.waitLog(saidOpen, 2)
	w.stopAgentSoon()
	w.server.Disconnect(nodeName)
	if err := ping(c); err == nil {
		t.Error("a stream of the older connection outlives Disconnect")
	}
}

// stopAgentSoon keeps the agent from connecting again.
func (w *world) stopAgentSoon() { w.known.set() }

// A partition loses packets and says nothing.
func TestTunnel_Partition_IsNoticed(t *testing.T) {
	w := newWorld(t, setting{
		agent:  func(c *agent.Config) { c.PingAfter, c.PingTimeout = time.Second, time.Second },
		server: func(c *server.Config) { c.PingAfter, c.PingTimeout = time.Second, time.Second },
	})
	c := w.dialKubelet()
	if err := ping(c); err != nil {
		t.Fatal(err)
	}
	w.wire.stall()
	start := time.Now()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the server's side ends with %v", err)
	}
	w.waitLog(saidLost, 1)
	t.Logf("noticed on both sides after %s", time.Since(start).Round(time.Millisecond))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	w.wire.heal()
	w.waitLog(saidBack, 1)
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
}

// Idle connections stay.
func TestTunnel_Idle_StaysOpen(t *testing.T) {
	w := newWorld(t, setting{
		agent:  func(c *agent.Config) { c.PingAfter, c.PingTimeout = 20*time.Millisecond, 5*time.Second },
		server: func(c *server.Config) { c.PingAfter, c.PingTimeout = 20*time.Millisecond, 5*time.Second },
	})
	c := w.dialKubelet()
	timer := time.NewTimer(500 * time.Millisecond)
	<-timer.C
	if err := ping(c); err != nil {
		t.Error(err)
	}
	if w.wire.connections() != 1 {
		t.Errorf("%d connections were made", w.wire.connections())
	}
}

func TestServer_Stop_EndsEverything(t *testing.T) {
	w := newWorld(t, setting{})
	c := w.dialKubelet()
	w.stopServer()
	if err := ping(c); err == nil {
		t.Error("a stream outlives the server")
	}
}

func TestServer_NoTunnel_WaitsThenSays(t *testing.T) {
	w := newWorld(t, setting{offline: true, server: func(c *server.Config) { c.Wait = 50 * time.Millisecond }})
	// An address of its own: the port must be free both times.
	const ip = "127.77.3.1"
	w.nodes.add(nodeName, ip, podRange)
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.nodes.addKubelet(nodeName, ip, address)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, port, _ := net.SplitHostPort(address)
	_, err = w.server.DialContext(ctx, "tcp", net.JoinHostPort(nodeName, port))
	if !errors.Is(err, server.ErrNoTunnel) || !strings.Contains(err.Error(), nodeName) ||
		!strings.Contains(err.Error(), "refused") {
		t.Errorf("error is %v", err)
	}
	// Where the node can be reached without one, it is.
	l, err = net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := w.server.DialContext(ctx, "tcp", net.JoinHostPort(nodeName, port))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// A tunnel that comes while it is waited for is used.
func TestServer_TunnelComesLate_IsUsed(t *testing.T) {
	w := newWorld(t, setting{agent: func(c *agent.Config) { c.FirstRetry = 200 * time.Millisecond }})
	w.waitLog(saidOpen, 1)
	w.wire.cut()
	w.waitLog(saidLost, 1)
	if err := ping(w.dialKubelet()); err != nil {
		t.Error(err)
	}
}

func TestServer_ServeNode_BadRequests(t *testing.T) {
	w := newWorld(t, setting{offline: true})
	client := w.front.Client()
	response, err := client.Get(w.front.URL + joinapi.PathTunnel)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("without Upgrade: %s", response.Status)
	}
	client.CloseIdleConnections()
	w.stopServer()
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest(http.MethodGet, joinapi.PathTunnel, nil)
	request.Header.Set("Upgrade", joinapi.TunnelProtocol)
	w.server.ServeNode(recorder, request, nodeName)
	if recorder.Code != http.StatusServiceUnavailable ||
		!strings.Contains(recorder.Body.String(), string(joinapi.CodeNotReady)) {
		t.Errorf("after Run: %d %s", recorder.Code, recorder.Body)
	}
}
