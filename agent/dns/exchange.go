package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

var (
	// errOversized means that a reply is longer than the query permits. Its message is valid.
	errOversized = errors.New("reply longer than requested")
	// errMalformed means that a reply belongs to the query and cannot be read to its end.
	errMalformed = errors.New("malformed reply")
)

// exchanger sends one query to one resolver. With errOversized there is also a reply.
type exchanger func(ctx context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error)

// newExchanger returns the exchanger over the network.
func newExchanger() exchanger {
	// A resolver that ignores the size in the query may send any size, and what does not fit into
	// the buffer is lost.
	buffers := &sync.Pool{New: func() any { return new([wire.MaxMsgSize]byte) }}
	return func(ctx context.Context, network string, server netip.AddrPort, m *wire.Msg) (*wire.Msg, error) {
		if network != "udp" {
			client := wire.Client{Net: network, Timeout: tryTimeout}
			reply, _, err := client.ExchangeContext(ctx, m, server.String())
			return reply, err
		}
		buffer := buffers.Get().(*[wire.MaxMsgSize]byte)
		defer buffers.Put(buffer)
		return exchangeUDP(ctx, server, m, buffer[:])
	}
}

// exchangeUDP waits for the reply to m and skips all other packets: late replies to earlier
// queries, and forged ones, which must not end the wait for the real one. The kernel drops packets
// from other addresses, as the socket is connected.
func exchangeUDP(ctx context.Context, server netip.AddrPort, m *wire.Msg, buffer []byte) (*wire.Msg, error) {
	packed, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Ends a blocked read when ctx ends for any reason.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	limit := wire.MinMsgSize
	if opt := m.IsEdns0(); opt != nil {
		limit = int(opt.UDPSize())
	}
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, err
		}
		reply := new(wire.Msg)
		malformed := reply.Unpack(buffer[:n])
		switch {
		case !answers(m, reply):
		case reply.Truncated:
			return reply, nil
		case malformed != nil:
			return nil, fmt.Errorf("%w: %w", errMalformed, malformed)
		case n > limit:
			return reply, errOversized
		default:
			return reply, nil
		}
	}
}

// answers reports whether a reply belongs to a query. Upper and lower case may differ: some
// resolvers change it.
func answers(m, reply *wire.Msg) bool {
	if reply == nil || !reply.Response || reply.Id != m.Id || reply.Opcode != m.Opcode {
		return false
	}
	if len(reply.Question) == 0 {
		// Some servers leave the question out when they refuse.
		return reply.Rcode != wire.RcodeSuccess
	}
	q, sent := reply.Question[0], m.Question[0]
	return len(reply.Question) == 1 && strings.EqualFold(q.Name, sent.Name) && q.Qtype == sent.Qtype &&
		q.Qclass == sent.Qclass
}
