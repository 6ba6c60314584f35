package dns

import (
	"context"
	"net"
	"strings"

	wire "github.com/miekg/dns"
)

// request is a message with the properties that shape the reply.
type request struct {
	msg  *wire.Msg
	udp  bool
	edns *wire.OPT // nil without EDNS
}

// answer answers one message.
func (s *Server) answer(ctx context.Context, w wire.ResponseWriter, m *wire.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	reply, source := s.reply(ctx, request{msg: m, udp: udp, edns: m.IsEdns0()})
	s.metrics.request(udp, source, reply.Rcode)
	// If this fails, the client is gone.
	_ = w.WriteMsg(reply)
}

// Sources of answers, as the metrics name them.
const (
	sourceNone    = "none"
	sourceCluster = "cluster"
	sourceHosts   = "hosts"
	sourceForward = "forward"
)

// reply builds the reply to a message, and returns the source of the answer.
func (s *Server) reply(ctx context.Context, r request) (reply *wire.Msg, source string) {
	reply = new(wire.Msg)
	reply.SetReply(r.msg)
	reply.RecursionAvailable = true
	reply.Compress = true
	source = sourceNone
	switch {
	case r.msg.Opcode != wire.OpcodeQuery:
		reply.Rcode = wire.RcodeNotImplemented
	case len(r.msg.Question) != 1:
		reply.Rcode = wire.RcodeFormatError
	case r.edns != nil && r.edns.Version() != 0:
		reply.Rcode = wire.RcodeBadVers
	case r.msg.Question[0].Qclass != wire.ClassINET, r.msg.Question[0].Qtype == wire.TypeAXFR,
		r.msg.Question[0].Qtype == wire.TypeIXFR:
		reply.Rcode = wire.RcodeRefused
	default:
		source = s.fill(ctx, r, reply)
	}
	limit := wire.MaxMsgSize
	if r.udp {
		limit = wire.MinMsgSize
	}
	if r.edns != nil {
		if r.udp {
			limit = min(max(int(r.edns.UDPSize()), wire.MinMsgSize), ednsSize)
		}
		reply.SetEdns0(ednsSize, r.edns.Do())
		// The code of a bad version does not fit into the header; its upper bits are in the EDNS
		// record.
		reply.IsEdns0().SetExtendedRcode(uint16(reply.Rcode))
	}
	reply.Truncate(limit)
	return reply, source
}

// fill answers the one question of r.
func (s *Server) fill(ctx context.Context, r request, reply *wire.Msg) (source string) {
	sent := r.msg.Question[0]
	q := question{original: sent.Name, name: strings.ToLower(sent.Name), qtype: sent.Qtype}
	set := s.settings.Load()
	if q.qtype == wire.TypeANY {
		// A short answer, which cannot be used to amplify an attack (RFC 8482).
		reply.Answer = []wire.RR{&wire.HINFO{Hdr: header(q.original, wire.TypeHINFO), Cpu: "RFC8482"}}
		return sourceNone
	}
	if s.zone.owns(q.name) {
		s.fillCluster(ctx, r, q, s.zone.resolve(q), reply)
		return sourceCluster
	}
	if s.zone.misdirected(q.name) {
		reply.Rcode = wire.RcodeNameError
		return sourceCluster
	}
	if a, ok := set.static(q); ok {
		s.fillCluster(ctx, r, q, a, reply)
		return sourceHosts
	}
	if a, ok := s.zone.reverse(q); ok {
		s.fillCluster(ctx, r, q, a, reply)
		return sourceCluster
	}
	if !r.msg.RecursionDesired {
		reply.Rcode = wire.RcodeRefused
		return sourceNone
	}
	m := s.recurse(ctx, r, q)
	reply.Rcode, reply.AuthenticatedData = m.Rcode, m.AuthenticatedData
	reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
	for _, rr := range reply.Answer {
		// Some clients vary upper and lower case, and check that the answer repeats it.
		if h := rr.Header(); strings.EqualFold(h.Name, q.original) {
			h.Name = q.original
		}
	}
	return sourceForward
}

// fillCluster copies an answer of our own and resolves its alias.
func (s *Server) fillCluster(ctx context.Context, r request, q question, a answer, reply *wire.Msg) {
	reply.Authoritative = true
	reply.Rcode, reply.Answer, reply.Ns, reply.Extra = a.rcode, a.records, a.authority, a.additional
	if a.alias == "" || !r.msg.RecursionDesired {
		return
	}
	// The alias may be a static host as well.
	target := question{original: a.alias, name: a.alias, qtype: q.qtype}
	if known, ok := s.settings.Load().static(target); ok {
		reply.Answer = append(reply.Answer, known.records...)
		return
	}
	m := s.recurse(ctx, r, target)
	reply.Answer = append(reply.Answer, m.Answer...)
	// The alias is part of the answer, whatever became of its target.
	reply.Rcode = m.Rcode
	if len(m.Answer) == 0 {
		reply.Ns = m.Ns
	}
}

// recurse queries the resolvers responsible for a name.
func (s *Server) recurse(ctx context.Context, r request, q question) *wire.Msg {
	servers := s.settings.Load().serversFor(q.name)
	if servers == nil {
		servers = s.hostServers()
	}
	return s.forward.resolve(ctx, q, servers, r.edns != nil && r.edns.Do(), r.msg.CheckingDisabled)
}
