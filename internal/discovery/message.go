package discovery

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// service is the DNS-SD name of servers.
	service = "_mote._tcp.local."
	// pinKey is the TXT record's key for the CA's pin.
	pinKey = "pin="
	// lifetime is the TTL of an answer in seconds; nobody caches them.
	lifetime = 10
)

// Server describes a server to those who ask.
type Server struct {
	// Name distinguishes servers; its first DNS label is used. The hostname will do.
	Name string
	// Port is the HTTPS port.
	Port uint16
	// Pin is the fingerprint of the cluster's CA.
	Pin string
	// Addresses returns where the server is reached now.
	Addresses func() []net.IP
}

// question asks for servers, to be answered by unicast.
func question() ([]byte, error) {
	m := new(dns.Msg)
	m.SetQuestion(service, dns.TypePTR)
	m.RecursionDesired = false
	return m.Pack()
}

// reply answers a message if it asks for this service, else it returns nil.
func (s Server) reply(message []byte) ([]byte, error) {
	m := new(dns.Msg)
	// All kinds of messages arrive at this port; those that cannot be parsed are not for us.
	if m.Unpack(message) != nil || m.Response || !slices.ContainsFunc(m.Question, func(q dns.Question) bool {
		return strings.EqualFold(q.Name, service) && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY)
	}) {
		return nil, nil
	}
	label, _, _ := strings.Cut(s.Name, ".")
	instance, host := label+"."+service, label+".local."
	out := new(dns.Msg)
	// The ID and question are repeated, as in unicast DNS (RFC 6762, 6.7).
	out.SetReply(m)
	out.Authoritative = true
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{
			Name:   name,
			Rrtype: kind,
			Class:  dns.ClassINET,
			Ttl:    lifetime,
		}
	}
	out.Answer = []dns.RR{&dns.PTR{Hdr: header(service, dns.TypePTR), Ptr: instance}}
	out.Extra = []dns.RR{
		&dns.SRV{Hdr: header(instance, dns.TypeSRV), Port: s.Port, Target: host},
		&dns.TXT{Hdr: header(instance, dns.TypeTXT), Txt: []string{pinKey + s.Pin}},
	}
	for _, ip := range s.Addresses() {
		if v4 := ip.To4(); v4 != nil {
			out.Extra = append(out.Extra, &dns.A{Hdr: header(host, dns.TypeA), A: v4})
		}
	}
	data, err := out.Pack()
	if err != nil {
		return nil, fmt.Errorf("write answer for %s: %w", service, err)
	}
	return data, nil
}

// read returns the servers of the pinned cluster that an answer names, as HOST:PORT, the sender's
// own address first.
func read(message []byte, from netip.Addr, pin string) []string {
	m := new(dns.Msg)
	if m.Unpack(message) != nil || !m.Response {
		return nil
	}
	var port uint16
	var hosts []string
	pinned := false
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		switch rr := rr.(type) {
		case *dns.SRV:
			port = rr.Port
		case *dns.TXT:
			pinned = pinned || slices.Contains(rr.Txt, pinKey+pin)
		case *dns.A:
			hosts = append(hosts, rr.A.String())
		}
	}
	if !pinned || port == 0 {
		return nil
	}
	var out []string
	for _, host := range append([]string{from.Unmap().String()}, hosts...) {
		if s := net.JoinHostPort(host, strconv.Itoa(int(port))); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
