package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	wire "github.com/miekg/dns"
)

// script is what a scripted resolver does: udp returns the packets to send for a query, tcp the one
// message; nil drops the query or closes the connection. Without tcp, its port is closed.
type script struct {
	udp func(m *wire.Msg) [][]byte
	tcp func(m *wire.Msg) []byte
}

// scripted is a running script and what it was asked: "udp A", "tcp AAAA plain" for one without
// EDNS.
type scripted struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked []string
}

func (s *scripted) note(network string, m *wire.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := network + " " + wire.Type(m.Question[0].Qtype).String()
	if m.IsEdns0() == nil {
		text += " plain"
	}
	s.asked = append(s.asked, text)
}

func (s *scripted) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, ", ")
}

// run serves a script until the test ends.
func (r script) run(t *testing.T) *scripted {
	t.Helper()
	packets, streams := listenBoth(t)
	s := &scripted{addr: netip.MustParseAddrPort(packets.LocalAddr().String())}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		packets.Close()
		streams.Close()
		serving.Wait()
	})
	serving.Go(func() {
		buffer := make([]byte, wire.MaxMsgSize)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			m := new(wire.Msg)
			if m.Unpack(buffer[:n]) != nil {
				continue
			}
			s.note("udp", m)
			for _, packet := range r.udp(m) {
				_, _ = packets.WriteTo(packet, from)
			}
		}
	})
	if r.tcp == nil {
		streams.Close()
		return s
	}
	serving.Go(func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				var length uint16
				if binary.Read(conn, binary.BigEndian, &length) != nil {
					return
				}
				query := make([]byte, length)
				m := new(wire.Msg)
				if _, err := io.ReadFull(conn, query); err != nil || m.Unpack(query) != nil {
					return
				}
				s.note("tcp", m)
				if reply := r.tcp(m); reply != nil {
					_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
				}
			})
		}
	})
	return s
}

// packed packs a reply with n address records of the type asked for.
func packed(t *testing.T, m *wire.Msg, n int, change ...func(*wire.Msg)) []byte {
	t.Helper()
	reply := new(wire.Msg).SetReply(m)
	reply.RecursionAvailable = true
	for i := range n {
		text := fmt.Sprintf("A 192.0.2.%d", i)
		if m.Question[0].Qtype == wire.TypeAAAA {
			text = fmt.Sprintf("AAAA 2001:db8::%d", i)
		}
		reply.Answer = append(reply.Answer, record(t, m.Question[0].Name+" 60 IN "+text))
	}
	if m.IsEdns0() != nil {
		reply.SetEdns0(4096, false)
	}
	for _, c := range change {
		c(reply)
	}
	out, err := reply.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func code(rcode int) func(*wire.Msg) { return func(m *wire.Msg) { m.Rcode = rcode } }

// withoutOPT is how a server without EDNS replies.
func withoutOPT(m *wire.Msg) { m.Extra = nil }

func TestForwarder_Resolve_OddResolvers(t *testing.T) {
	t.Parallel()
	whole := func(n int) func(*wire.Msg) []byte {
		return func(m *wire.Msg) []byte { return packed(t, m, n) }
	}
	packets := func(f func(m *wire.Msg) []byte) func(*wire.Msg) [][]byte {
		return func(m *wire.Msg) [][]byte { return [][]byte{f(m)} }
	}
	silent := func(*wire.Msg) [][]byte { return nil }
	// good knows 3 addresses of every name.
	good := script{udp: packets(whole(3)), tcp: whole(3)}
	truncated := func(m *wire.Msg) []byte {
		return packed(t, m, 1, func(r *wire.Msg) { r.Truncated = true })
	}
	refuses := func(rcode int, changes ...func(*wire.Msg)) script {
		reply := func(m *wire.Msg) []byte { return packed(t, m, 0, append(changes, code(rcode))...) }
		return script{udp: packets(reply), tcp: reply}
	}
	// refusesType answers all types but one.
	refusesType := func(qtype uint16, rcode int) script {
		reply := func(m *wire.Msg) []byte {
			if m.Question[0].Qtype == qtype {
				return packed(t, m, 0, code(rcode))
			}
			return packed(t, m, 3)
		}
		return script{udp: packets(reply), tcp: reply}
	}
	// refusesEDNS answers queries without EDNS only.
	refusesEDNS := func(rcode int, changes ...func(*wire.Msg)) script {
		return script{udp: packets(func(m *wire.Msg) []byte {
			if m.IsEdns0() != nil {
				return packed(t, m, 0, append(changes, code(rcode))...)
			}
			return packed(t, m, 3)
		})}
	}
	before := func(odd func(m *wire.Msg) []byte) script {
		return script{udp: func(m *wire.Msg) [][]byte { return [][]byte{odd(m), packed(t, m, 3)} }}
	}
	const a = wire.TypeA
	for _, row := range []struct {
		name      string
		resolvers []script
		qtype     uint16
		want      string // response code and number of addresses
		asked     string // what the first resolver was asked; empty does not matter
	}{
		// Size and truncation.
		{"more than requested without TC", []script{{udp: packets(whole(200)), tcp: whole(201)}}, a,
			"NOERROR 201", "udp A, tcp A"},
		{"more than requested without TC, TCP is closed", []script{{udp: packets(whole(200))}}, a, "NOERROR 200",
			"udp A"},
		{"more than requested without TC, TCP hangs up",
			[]script{{udp: packets(whole(200)), tcp: func(*wire.Msg) []byte { return nil }}}, a, "NOERROR 200", ""},
		{"more than 512 bytes without EDNS and TC", []script{{udp: packets(func(m *wire.Msg) []byte {
			if m.IsEdns0() != nil {
				return packed(t, m, 0, code(wire.RcodeFormatError), withoutOPT)
			}
			return packed(t, m, 50)
		}), tcp: whole(51)}}, a, "NOERROR 51", "udp A, udp A plain, tcp A plain"},
		{"TC", []script{{udp: packets(truncated), tcp: whole(9)}}, a, "NOERROR 9", "udp A, tcp A"},
		{"TC and no TCP, then a resolver with TCP",
			[]script{{udp: packets(truncated)}, {udp: packets(truncated), tcp: whole(9)}}, a, "NOERROR 9", "udp A"},
		{"TC and no TCP", []script{{udp: packets(truncated)}}, a, "SERVFAIL 0", "udp A"},
		{"TC and TCP hangs up",
			[]script{{udp: packets(truncated), tcp: func(*wire.Msg) []byte { return nil }}, good}, a, "NOERROR 3", ""},
		{"TC with a record cut in two", []script{{udp: packets(func(m *wire.Msg) []byte {
			cut := packed(t, m, 9, withoutOPT, func(r *wire.Msg) { r.Truncated = true })
			return cut[:len(cut)-7]
		}), tcp: whole(9)}}, a, "NOERROR 9", "udp A, tcp A"},
		{"a record cut in two without TC", []script{{udp: packets(func(m *wire.Msg) []byte {
			cut := packed(t, m, 9, withoutOPT)
			return cut[:len(cut)-7]
		}), tcp: whole(9)}}, a, "NOERROR 9", "udp A, tcp A"},
		{"a record cut in two and no TCP, then the next resolver", []script{{udp: packets(func(m *wire.Msg) []byte {
			cut := packed(t, m, 9, withoutOPT)
			return cut[:len(cut)-7]
		})}, good}, a, "NOERROR 3", ""},

		// Packets that are no reply to the query, before one that is.
		{"another ID first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Id++ })
		})}, a, "NOERROR 3", "udp A"},
		{"another question first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Question[0].Name = "other.example." })
		})}, a, "NOERROR 3", "udp A"},
		{"another type first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Question[0].Qtype = wire.TypeAAAA })
		})}, a, "NOERROR 3", "udp A"},
		{"another class first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Question[0].Qclass = wire.ClassCHAOS })
		})}, a, "NOERROR 3", "udp A"},
		{"no question first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Question = nil })
		})}, a, "NOERROR 3", "udp A"},
		{"the query itself first", []script{before(func(m *wire.Msg) []byte {
			return packed(t, m, 0, func(r *wire.Msg) { r.Response = false })
		})}, a, "NOERROR 3", "udp A"},
		{"garbage first", []script{before(func(*wire.Msg) []byte { return []byte("not a message of the DNS") })}, a,
			"NOERROR 3", "udp A"},
		{"an empty packet first", []script{before(func(*wire.Msg) []byte { return nil })}, a, "NOERROR 3", "udp A"},
		{"only other IDs, then the next resolver", []script{{udp: packets(func(m *wire.Msg) []byte {
			return packed(t, m, 9, func(r *wire.Msg) { r.Id++ })
		})}, good}, a, "NOERROR 3", "udp A"},
		{"another ID over TCP, then the next resolver", []script{{udp: packets(truncated),
			tcp: func(m *wire.Msg) []byte { return packed(t, m, 9, func(r *wire.Msg) { r.Id++ }) }}, good}, a,
			"NOERROR 3", "udp A, tcp A"},
		{"another question over TCP, then the next resolver", []script{{udp: packets(truncated),
			tcp: func(m *wire.Msg) []byte {
				return packed(t, m, 9, func(r *wire.Msg) { r.Question[0].Name = "other.example." })
			}}, good}, a, "NOERROR 3", "udp A, tcp A"},

		// Refusals.
		{"REFUSED, then the next resolver", []script{refuses(wire.RcodeRefused), good}, a, "NOERROR 3", "udp A"},
		{"SERVFAIL, then the next resolver", []script{refuses(wire.RcodeServerFailure), good}, a, "NOERROR 3", "udp A"},
		{"NOTIMP, then the next resolver", []script{refuses(wire.RcodeNotImplemented), good}, a, "NOERROR 3", ""},
		{"REFUSED by all", []script{refuses(wire.RcodeRefused), refuses(wire.RcodeRefused)}, a, "SERVFAIL 0", ""},
		{"closed, then the next resolver", []script{{udp: silent}, good}, a, "NOERROR 3", "udp A"},
		{"NXDOMAIN", []script{refuses(wire.RcodeNameError), good}, a, "NXDOMAIN 0", "udp A"},
		{"an empty answer", []script{refuses(wire.RcodeSuccess), good}, a, "NOERROR 0", "udp A"},
		{"an empty answer without recursion, then the next resolver",
			[]script{refuses(wire.RcodeSuccess, func(r *wire.Msg) { r.RecursionAvailable = false }), good}, a,
			"NOERROR 3", "udp A"},
		{"an empty answer without recursion and no other resolver",
			[]script{refuses(wire.RcodeSuccess, func(r *wire.Msg) { r.RecursionAvailable = false })}, a, "NOERROR 0",
			"udp A"},
		{"AAAA alone is REFUSED", []script{refusesType(wire.TypeAAAA, wire.RcodeRefused)}, wire.TypeAAAA, "NOERROR 0",
			"udp AAAA, udp A"},
		{"AAAA alone is NOTIMP", []script{refusesType(wire.TypeAAAA, wire.RcodeNotImplemented)}, wire.TypeAAAA,
			"NOERROR 0", ""},
		{"AAAA alone is FORMERR", []script{refusesType(wire.TypeAAAA, wire.RcodeFormatError)}, wire.TypeAAAA,
			"NOERROR 0", ""},
		{"A alone is REFUSED", []script{refusesType(wire.TypeA, wire.RcodeRefused)}, a, "NOERROR 0", "udp A, udp AAAA"},
		{"AAAA alone is SERVFAIL", []script{refusesType(wire.TypeAAAA, wire.RcodeServerFailure)}, wire.TypeAAAA,
			"SERVFAIL 0", ""},
		{"TXT alone is REFUSED", []script{refusesType(wire.TypeTXT, wire.RcodeRefused)}, wire.TypeTXT, "SERVFAIL 0",
			""},

		// EDNS.
		{"FORMERR for EDNS", []script{refusesEDNS(wire.RcodeFormatError, withoutOPT)}, a, "NOERROR 3",
			"udp A, udp A plain"},
		{"FORMERR for EDNS, header only", []script{refusesEDNS(wire.RcodeFormatError, withoutOPT,
			func(r *wire.Msg) { r.Question = nil })}, a, "NOERROR 3", "udp A, udp A plain"},
		{"FORMERR for EDNS with EDNS", []script{refusesEDNS(wire.RcodeFormatError)}, a, "NOERROR 3", ""},
		{"NOTIMP for EDNS", []script{refusesEDNS(wire.RcodeNotImplemented, withoutOPT)}, a, "NOERROR 3",
			"udp A, udp A plain"},
		{"BADVERS for EDNS", []script{refusesEDNS(wire.RcodeBadVers)}, a, "NOERROR 3", "udp A, udp A plain"},
		{"SERVFAIL for EDNS", []script{refusesEDNS(wire.RcodeServerFailure, withoutOPT)}, a, "NOERROR 3",
			"udp A, udp A plain"},
		{"REFUSED for EDNS", []script{refusesEDNS(wire.RcodeRefused, withoutOPT)}, a, "NOERROR 3",
			"udp A, udp A plain"},
		{"no reply to EDNS", []script{{udp: func(m *wire.Msg) [][]byte {
			if m.IsEdns0() != nil {
				return nil
			}
			return [][]byte{packed(t, m, 3)}
		}}}, a, "NOERROR 3", "udp A, udp A plain"},
		{"no EDNS in the reply", []script{{udp: packets(func(m *wire.Msg) []byte {
			return packed(t, m, 3, withoutOPT)
		})}}, a, "NOERROR 3", "udp A"},

		// Upper and lower case.
		{"case changed", []script{{udp: packets(func(m *wire.Msg) []byte {
			return packed(t, m, 3, func(r *wire.Msg) {
				r.Question[0].Name = strings.ToUpper(r.Question[0].Name)
				for _, rr := range r.Answer {
					rr.Header().Name = strings.ToUpper(rr.Header().Name)
				}
			})
		})}}, a, "NOERROR 3", "udp A"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var servers []netip.AddrPort
			var running []*scripted
			for _, r := range row.resolvers {
				running = append(running, r.run(t))
				servers = append(servers, running[len(running)-1].addr)
			}
			f := newForwarder(1<<20, newExchanger(), time.Now, func(string) {})
			q := question{original: "Name.Example.", name: "name.example.", qtype: row.qtype}
			m := f.resolve(context.Background(), q, servers, false, false)
			if got := fmt.Sprintf("%s %d", wire.RcodeToString[m.Rcode], len(m.Answer)); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
			if got := running[0].log(); row.asked != "" && got != row.asked {
				t.Errorf("the first resolver was asked %s; want %s", got, row.asked)
			}
			if m.Truncated {
				t.Error("the answer says it is truncated")
			}
		})
	}
}

// What a resolver cannot do is learnt once, and a resolver that answers is not put behind others
// for what it cannot do.
func TestForwarder_Resolve_RemembersAbilities(t *testing.T) {
	t.Parallel()
	dropsEDNS := script{udp: func(m *wire.Msg) [][]byte {
		if m.IsEdns0() != nil {
			return nil
		}
		return [][]byte{packed(t, m, 3)}
	}}.run(t)
	clock := &testClock{now: time.Unix(1e9, 0)}
	f := newForwarder(1<<20, newExchanger(), clock.Now, func(string) {})
	ask := func(name string, qtype uint16, servers ...netip.AddrPort) string {
		m := f.resolve(context.Background(), question{name, name, qtype}, servers, false, false)
		return wire.RcodeToString[m.Rcode]
	}
	ask("one.example.", wire.TypeA, dropsEDNS.addr)
	ask("two.example.", wire.TypeA, dropsEDNS.addr)
	if got := dropsEDNS.log(); got != "udp A, udp A plain, udp A plain" {
		t.Errorf("a resolver that drops EDNS was asked %s", got)
	}
	clock.move(ednsKnown)
	ask("three.example.", wire.TypeA, dropsEDNS.addr)
	if got := dropsEDNS.log(); got != "udp A, udp A plain, udp A plain, udp A, udp A plain" {
		t.Errorf("after %v it was asked %s", ednsKnown, got)
	}

	refusesAAAA := script{udp: func(m *wire.Msg) [][]byte {
		if m.Question[0].Qtype == wire.TypeAAAA {
			return [][]byte{packed(t, m, 0, code(wire.RcodeRefused))}
		}
		return [][]byte{packed(t, m, 3)}
	}}.run(t)
	for range 3 {
		ask("one.example.org.", wire.TypeAAAA, refusesAAAA.addr)
		ask("one.example.org.", wire.TypeA, refusesAAAA.addr)
	}
	if got := refusesAAAA.log(); got != "udp AAAA, udp A" {
		t.Errorf("a resolver that refuses AAAA was asked %s", got)
	}

	noTCP := script{udp: func(m *wire.Msg) [][]byte {
		return [][]byte{packed(t, m, 1, func(r *wire.Msg) { r.Truncated = m.Question[0].Name == "big.example." })}
	}}.run(t)
	other := script{udp: func(m *wire.Msg) [][]byte { return [][]byte{packed(t, m, 3)} }}.run(t)
	ask("big.example.", wire.TypeA, noTCP.addr, other.addr)
	ask("small.example.", wire.TypeA, noTCP.addr, other.addr)
	if got := other.log(); got != "udp A" {
		t.Errorf("the resolver behind one without TCP was asked %s", got)
	}
}

// A reply from another address than the one that was asked does not count: anybody can send one.
func TestExchange_ReplyFromAnotherAddress(t *testing.T) {
	t.Parallel()
	elsewhere, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, wire.MaxMsgSize)
		n, from, err := packets.ReadFrom(buffer)
		m := new(wire.Msg)
		if err != nil || m.Unpack(buffer[:n]) != nil {
			return
		}
		_, _ = elsewhere.WriteTo(packed(t, m, 9), from)
		_, _ = packets.WriteTo(packed(t, m, 3), from)
	}()
	defer func() {
		packets.Close()
		<-done
	}()
	m := new(wire.Msg).SetQuestion("x.example.", wire.TypeA)
	reply, err := newExchanger()(t.Context(), "udp", netip.MustParseAddrPort(packets.LocalAddr().String()), m)
	if err != nil || len(reply.Answer) != 3 {
		t.Errorf("got %v, %v; want the reply of the resolver", reply, err)
	}
}

// An exchange ends when its context does, also without a deadline.
func TestExchange_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	silent := script{udp: func(*wire.Msg) [][]byte {
		asked <- struct{}{}
		return nil
	}}.run(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	start := time.Now()
	m := new(wire.Msg).SetQuestion("x.example.", wire.TypeA)
	if _, err := newExchanger()(ctx, "udp", silent.addr, m); err == nil || time.Since(start) > tryTimeout {
		t.Errorf("ended after %v with %v", time.Since(start), err)
	}
}
