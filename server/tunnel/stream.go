package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mote-dev/mote/internal/joinapi"
)

// stream is one TCP connection to a node, as a net.Conn. Each direction goes through a net.Pipe,
// for the deadlines that HTTP/2 bodies lack.
type stream struct {
	session *session
	target  string
	in, out net.Conn // what the user reads and writes
	fed     net.Conn // the other end of in
	body    *body    // holds the other end of out
	abort   context.CancelFunc

	mu     sync.Mutex // guards what follows
	closed bool
	done   bool  // receive has returned
	fault  error // why reading ended early
	linger *time.Timer
}

var _ net.Conn = (*stream)(nil)

func newStream(n *session, target string, abort context.CancelFunc) *stream {
	c := &stream{session: n, target: target, abort: abort}
	c.in, c.fed = net.Pipe()
	source, out := net.Pipe()
	c.out, c.body = out, &body{source: source}
	return c
}

// receive passes the node's data to the reader until it ends.
func (c *stream) receive(from io.ReadCloser) {
	err := joinapi.ReadFrames(c.fed, from)
	switch {
	case err == nil:
		_ = c.fed.Close()
	case errors.Is(err, io.ErrClosedPipe):
		// The user has closed the stream; its written data may still be in transit.
		err = nil
	default:
		c.fail(err)
	}
	if err == nil {
		// The HTTP/2 stream ends only when its other direction does, which closing the body now
		// would cut off.
		if _, err := io.Copy(io.Discard, from); err != nil {
			c.fail(err)
		}
	}
	_ = from.Close()
	c.abort()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	if c.linger != nil {
		c.linger.Stop()
	}
}

// fail ends both directions early.
func (c *stream) fail(err error) {
	if c.session.over() {
		err = errTunnelEnded
	}
	c.mu.Lock()
	if c.fault == nil {
		c.fault = fmt.Errorf("connection to %s on node %s: %w", c.target, c.session.node, err)
	}
	c.mu.Unlock()
	_ = c.fed.Close()
	_ = c.body.Close()
}

// Read implements net.Conn.
func (c *stream) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err == nil {
		return n, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, io.ErrClosedPipe):
		err = net.ErrClosed
	case errors.Is(err, io.EOF) && c.fault != nil:
		err = c.fault
	}
	return n, err
}

// Write implements net.Conn.
func (c *stream) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	if !errors.Is(err, io.ErrClosedPipe) {
		return n, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		err = net.ErrClosed
	case c.fault != nil:
		err = c.fault
	default:
		err = syscall.EPIPE
	}
	return n, err
}

// CloseWrite ends the direction to the node and leaves the other one open.
func (c *stream) CloseWrite() error { return c.out.Close() }

// Close implements net.Conn. As with TCP, written data is still sent.
func (c *stream) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	if !c.done {
		c.linger = time.AfterFunc(lingerTimeout, c.abort)
	}
	c.mu.Unlock()
	_ = c.in.Close()
	_ = c.out.Close()
	c.body.whenSent(c.abort)
	return nil
}

// LocalAddr implements net.Conn.
func (c *stream) LocalAddr() net.Addr { return c.session.conn.LocalAddr() }

// RemoteAddr implements net.Conn; it is the node's end of the tunnel.
func (c *stream) RemoteAddr() net.Addr { return c.session.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (c *stream) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *stream) SetReadDeadline(t time.Time) error { return c.in.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *stream) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }

// body is the data for the node, as the request body of the HTTP/2 stream.
type body struct {
	source net.Conn

	mu   sync.Mutex // guards what follows
	sent bool       // HTTP/2 has read to the end, so everything is on the wire
	then func()     // called once sent
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.source.Read(p)
	if err != nil {
		b.mu.Lock()
		b.sent = true
		then := b.then
		b.mu.Unlock()
		if then != nil {
			then()
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error { return b.source.Close() }

// whenSent calls then once there is nothing left to send.
func (b *body) whenSent(then func()) {
	b.mu.Lock()
	b.then = then
	sent := b.sent
	b.mu.Unlock()
	if sent {
		then()
	}
}
