package discovery

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func testServer() Server {
	return Server{Name: "alpha.example", Port: 6443, Pin: "abc", Addresses: func() []net.IP {
		return []net.IP{net.IPv4(192, 0, 2, 1), net.ParseIP("2001:db8::1"), net.IPv4(192, 0, 2, 2)}
	}}
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
	for name, message := range map[string][]byte{"another service": printer, "an answer": own, "noise": []byte("GET / HTTP/1.1"), "nothing": nil} {
		if data, err := testServer().reply(message); data != nil || err != nil {
			t.Errorf("%s was answered: %d bytes, %v", name, len(data), err)
		}
	}
}
