package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	wire "github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// idleTimeout is how long a TCP connection may be silent.
	idleTimeout = 8 * time.Second
	// stopTimeout bounds the wait for open queries when the server stops.
	stopTimeout = 3 * time.Second
	// maxConnections bounds the open TCP connections of one listener. Further clients wait in the
	// kernel's queue until one is closed or has been idle for too long.
	maxConnections = 256
	// firstAcceptRetry and lastAcceptRetry are the pauses after a failed accept.
	firstAcceptRetry, lastAcceptRetry = 5 * time.Millisecond, 250 * time.Millisecond
)

// handler answers one query. Its context ends when the answer can no longer be sent.
type handler func(ctx context.Context, w wire.ResponseWriter, m *wire.Msg)

// listener is one bound socket and the protocol server that will serve it.
type listener struct {
	server  *wire.Server
	started chan struct{} // closed once the server reads queries
	// answering is the context of the queries, and of TCP connections; abandon ends it.
	answering context.Context
	abandon   context.CancelFunc
}

// bind opens a UDP and a TCP socket on each address, or none at all.
func bind(ctx context.Context, addrs []netip.AddrPort, handle handler) ([]*listener, error) {
	// The address may appear on the interface a moment later, or be removed by a network manager
	// and restored: binding must not depend on it.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(
			func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(controlErr, err)
	}}
	var all []*listener
	for _, a := range addrs {
		l := newListener(ctx, handle)
		all = append(all, l)
		packets, err := config.ListenPacket(ctx, "udp", a.String())
		if err == nil {
			l.server.PacketConn, l.server.UDPSize = packets, ednsSize
			l = newListener(ctx, handle)
			all = append(all, l)
			var streams net.Listener
			if streams, err = config.Listen(ctx, "tcp", a.String()); err == nil {
				l.server.Listener = &streamListener{Listener: netutil.LimitListener(streams, maxConnections),
					ctx: l.answering}
			}
		}
		if err != nil {
			for _, each := range all {
				each.close()
			}
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
	}
	return all, nil
}

func newListener(ctx context.Context, handle handler) *listener {
	l := &listener{started: make(chan struct{})}
	l.answering, l.abandon = context.WithCancel(context.WithoutCancel(ctx))
	l.server = &wire.Server{
		Handler:           wire.HandlerFunc(func(w wire.ResponseWriter, m *wire.Msg) { handle(l.answering, w, m) }),
		IdleTimeout:       func() time.Duration { return idleTimeout },
		NotifyStartedFunc: func() { close(l.started) },
	}
	return l
}

// close frees the sockets of a listener that is not served.
func (l *listener) close() {
	l.abandon()
	// Nothing was read or written, so there is nothing to lose by an error.
	if l.server.PacketConn != nil {
		_ = l.server.PacketConn.Close()
	}
	if l.server.Listener != nil {
		_ = l.server.Listener.Close()
	}
}

// serve answers queries until ctx ends, and returns once all of its goroutines have ended.
func (l *listener) serve(ctx context.Context) error {
	defer l.close()
	served := make(chan error, 1)
	go func() { served <- l.server.ActivateAndServe() }()
	// miekg/dns ignores a shutdown that comes before the server has started, and would then serve
	// for ever.
	select {
	case err := <-served:
		return fmt.Errorf("serve DNS: %w", err)
	case <-l.started:
	}
	select {
	case err := <-served:
		return fmt.Errorf("serve DNS: %w", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(l.answering, stopTimeout)
	defer cancel()
	// Queries still open at the timeout are dropped; clients send them again.
	_ = l.server.ShutdownContext(end)
	l.abandon()
	<-served
	return nil
}

// streamListener fills two gaps of miekg/dns: a connection accepted while the server shuts down is
// never closed, and a process out of file descriptors accepts again without a pause.
type streamListener struct {
	net.Listener
	ctx     context.Context // that of all connections
	backoff retry.Backoff
}

// Accept implements net.Listener.
func (l *streamListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err == nil {
			l.backoff.Reset()
			return &stream{Conn: conn, release: context.AfterFunc(l.ctx, func() { _ = conn.Close() })}, nil
		}
		if !outOfResources(err) {
			return nil, err
		}
		l.backoff.First, l.backoff.Last = firstAcceptRetry, lastAcceptRetry
		if l.backoff.Wait(l.ctx) != nil {
			return nil, err
		}
	}
}

// outOfResources reports whether an accept failed for want of something others may free.
func outOfResources(err error) bool {
	for _, each := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, each) {
			return true
		}
	}
	return false
}

// stream is a connection that is closed with the server.
type stream struct {
	net.Conn
	release func() bool
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.release()
	return s.Conn.Close()
}
