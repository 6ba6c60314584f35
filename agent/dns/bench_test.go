package dns

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"go.uber.org/zap"
)

// benchServer returns a server that knows many names and needs no network.
func benchServer(b *testing.B) *Server {
	b.Helper()
	x := newIndex(func() {})
	x.setNamespace("default", true)
	for i := range 1000 {
		x.setService(key{"default", fmt.Sprintf("svc-%d", i)},
			&service{IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)})}})
	}
	listen := []netip.AddrPort{netip.MustParseAddrPort("10.43.0.10:53")}
	s := &Server{listen: listen, metrics: newCounters(), resolvers: newHostResolvers(nil, nil, time.Now, zap.NewNop())}
	s.zone = newZone(Config{ClusterDomain: "cluster.local."}, listen, func() *index { return x })
	s.settings.Store(&settings{upstreams: []netip.AddrPort{resolverA}})
	s.forward = newForwarder(1<<20,
		func(_ context.Context, _ string, _ netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
			return aReply(b, m, 3600, "192.0.2.9"), nil
		}, time.Now, func(string) {})
	return s
}

// BenchmarkServer_Reply measures one answer from question to packed reply, without the network.
func BenchmarkServer_Reply(b *testing.B) {
	for _, c := range []struct{ name, question string }{
		{"cluster", "svc-7.default.svc.cluster.local."}, {"missing", "www.example.com.default.svc.cluster.local."},
		{"cached", "www.example.com."},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := benchServer(b)
			m := new(wire.Msg).SetQuestion(c.question, wire.TypeA)
			m.SetEdns0(ednsSize, false)
			b.ReportAllocs()
			for b.Loop() {
				reply, _ := s.reply(context.Background(), request{msg: m, udp: true, edns: m.IsEdns0()})
				if _, err := reply.Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
