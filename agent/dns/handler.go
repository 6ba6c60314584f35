package dns

import (
	"context"
	"net"
	"strings"

	wire "github.com/miekg/dns"
)

// request is one question with what the asker's message says about it.
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
	// The asker is gone if this fails.
	_ = w.WriteMsg(reply)
}

// Sources of answers, for the counters.
const (
	sourceNone    = "none"
	sourceCluster = "cluster"
	sourceHosts   = "hosts"
	sourceForward = "forward"
)

// reply makes the whole reply to a message and says who knew.
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
	case r.msg.Question[0].Qclass != wire.ClassINET, r.msg.Question[0].Qtype == wire.TypeAXFR, r.msg.Question[0].Qtype == wire.TypeIXFR:
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
		// The code of a bad version is longer than the header's field; the rest of it is in the EDNS record.
		reply.IsEdns0().SetExtendedRcode(uint16(reply.Rcode))
	}
	reply.Truncate(limit)
	return reply, source
}

// fill answers the one question of r.
func (s *Server) fill(ctx context.Context, r request, reply *wire.Msg) (source string) {
	asked := r.msg.Question[0]
	q := question{asked: asked.Name, name: strings.ToLower(asked.Name), qtype: asked.Qtype}
	set := s.settings.Load()
	if q.qtype == wire.TypeANY {
		// A way to answer that cannot be used to flood others (RFC 8482).
		reply.Answer = []wire.RR{&wire.HINFO{Hdr: header(q.asked, wire.TypeHINFO), Cpu: "RFC8482"}}
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
		// Some askers vary upper and lower case and check that it comes back.
		if h := rr.Header(); strings.EqualFold(h.Name, q.asked) {
			h.Name = q.asked
		}
	}
	return sourceForward
}

// fillCluster copies an answer of our own and resolves what it leads to.
func (s *Server) fillCluster(ctx context.Context, r request, q question, a answer, reply *wire.Msg) {
	reply.Authoritative = true
	reply.Rcode, reply.Answer, reply.Ns, reply.Extra = a.rcode, a.records, a.authority, a.additional
	if a.alias == "" || !r.msg.RecursionDesired {
		return
	}
	// The alias may be a static host as well.
	target := question{asked: a.alias, name: a.alias, qtype: q.qtype}
	if known, ok := s.settings.Load().static(target); ok {
		reply.Answer = append(reply.Answer, known.records...)
		return
	}
	m := s.recurse(ctx, r, target)
	reply.Answer = append(reply.Answer, m.Answer...)
	// The alias itself is known; that its target is not must not hide it, unless it is known not to exist.
	reply.Rcode = m.Rcode
	if len(m.Answer) == 0 {
		reply.Ns = m.Ns
	}
}

// recurse asks the resolvers responsible for a name.
func (s *Server) recurse(ctx context.Context, r request, q question) *wire.Msg {
	servers := s.settings.Load().serversFor(q.name)
	if servers == nil {
		found, changed := s.resolvers.get()
		if changed {
			s.resolversChanged(found)
		}
		servers = found
	}
	return s.forward.resolve(ctx, q, servers, r.edns != nil && r.edns.Do(), r.msg.CheckingDisabled)
}
