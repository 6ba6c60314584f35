package discovery

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func testServer() Server {
	return Server{
		Name: "alpha.example",
		Port: 6443,
		Pin:  "abc",
		Addresses: func() []net.IP {
			return []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1"), net.IPv4(192, 0, 2, 2)}
		},
	}
}

func TestServer_Reply_IsReadByAskers(t *testing.T) {
	q, err := question()
	if err != nil {
		t.Fatal(err)
	}
	data, err := testServer().reply(q)
	if err != nil || data == nil {
		t.Fatalf("no answer: %v", err)
	}
	from := netip.MustParseAddr("192.0.2.2")
	if got := fmt.Sprint(read(data, from, "abc")); got != "[192.0.2.2:6443 192.0.2.1:6443]" {
		t.Errorf("found %s, want the sender first and each address once", got)
	}
	if got := read(data, from, "abd"); got != nil {
		t.Errorf("found %v of another cluster", got)
	}
	if got := read(q, from, "abc"); got != nil {
		t.Errorf("took a question for an answer: %v", got)
	}
}

// failingConn fails to read a few times and is closed then.
type failingConn struct {
	net.PacketConn
	left int
}

func (c *failingConn) ReadFrom([]byte) (int, net.Addr, error) {
	if c.left--; c.left < 0 {
		return 0, nil, net.ErrClosed
	}
	return 0, nil, unix.ENOMEM
}

func TestAnswer_ReadFails_IsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		conn := &failingConn{left: 3}
		begin := time.Now()
		if err := answer(t.Context(), conn, testServer(), zap.New(core)); err != nil {
			t.Errorf("a failed read ends the server's part: %v", err)
		}
		if took := time.Since(begin); conn.left != -1 || took != 7*time.Second || logs.Len() != 1 {
			t.Errorf("%d reads left, took %s, logged %d lines; want the pauses 1, 2 and 4 s and one line", conn.left,
				took, logs.Len())
		}
	})
}

func TestServer_Reply_IgnoresOthers(t *testing.T) {
	other := new(dns.Msg)
	other.SetQuestion("_http._tcp.local.", dns.TypePTR)
	printer, err := other.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, err := question()
	if err != nil {
		t.Fatal(err)
	}
	own, err := testServer().reply(q)
	if err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string][]byte{"another service": printer, "an answer": own,
		"noise": []byte("GET / HTTP/1.1"), "nothing": nil} {
		if data, err := testServer().reply(message); data != nil || err != nil {
			t.Errorf("%s was answered: %d bytes, %v", name, len(data), err)
		}
	}
}
