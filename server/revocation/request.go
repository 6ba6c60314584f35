package revocation

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

// errRevoked is what a handler gets when its client's certificate is revoked while it runs.
var errRevoked = errors.New("client certificate was revoked")

// request is a running request. It stands in for the response's writer and the request's body, so
// that a handler that ignores its context ends as well.
type request struct {
	http.ResponseWriter
	cert   *x509.Certificate
	cancel context.CancelFunc
	guard  *Guard
	body   io.ReadCloser
	// revoked is set before cancel is called.
	revoked atomic.Bool
	// started is set once the client may have received part of a response.
	started atomic.Bool

	// mu guards conn, which is the hijacked connection, and whether it is closed and the handler
	// has returned. It is taken after the guard's.
	mu       sync.Mutex
	conn     net.Conn
	returned bool
	closed   bool
}

var _ responsewriter.UserProvidedDecorator = (*request)(nil)

// register registers a request. That comes before the list is read, see replace.
func (g *Guard) register(w http.ResponseWriter, r *http.Request) (*request, *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	f := &request{
		ResponseWriter: w,
		cert:           r.TLS.PeerCertificates[0],
		cancel:         cancel,
		guard:          g,
		body:           r.Body,
	}
	r = r.WithContext(ctx)
	// The standard library and the API server recognise an empty body by its identity.
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = (*requestBody)(f)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests[f] = struct{}{}
	return f, r
}

// end ends a request, except for a connection that outlives its handler.
func (g *Guard) end(f *request) {
	f.cancel()
	f.mu.Lock()
	f.returned = true
	over := f.conn == nil || f.closed
	f.mu.Unlock()
	if over {
		g.remove(f)
	}
}

func (g *Guard) remove(f *request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.requests, f)
}

// cut ends the request from outside.
func (f *request) cut() {
	f.revoked.Store(true)
	f.cancel()
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn != nil {
		abort(conn)
	}
}

func (f *request) isCut() bool { return f.revoked.Load() }

func (f *request) isHijacked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conn != nil
}

// abort closes a connection below TLS, whose close_notify would block on a client that does not
// read.
func abort(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	// The connection is of no use either way.
	_ = conn.Close()
}

// Unwrap is for http.ResponseController and upstream's wrappers.
func (f *request) Unwrap() http.ResponseWriter { return f.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (f *request) WriteHeader(status int) {
	if f.isCut() {
		return
	}
	f.started.Store(true)
	f.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (f *request) Write(p []byte) (int, error) {
	if f.isCut() {
		return 0, errRevoked
	}
	f.started.Store(true)
	return f.ResponseWriter.Write(p)
}

// Flush implements http.Flusher; it begins an answer that has not begun.
func (f *request) Flush() {
	flusher, ok := f.ResponseWriter.(http.Flusher)
	if !ok || f.isCut() {
		return
	}
	f.started.Store(true)
	flusher.Flush()
}

// Hijack implements http.Hijacker. The connection stays registered until it is closed, even after
// the handler has returned.
func (f *request) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hijacker, ok := f.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	conn, buffer, err := hijacker.Hijack()
	if err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	// Either cut sees the connection, or this sees that cut was called.
	if f.isCut() {
		abort(conn)
		return nil, nil, errRevoked
	}
	return &hijackedConn{Conn: conn, request: f}, buffer, nil
}

// hijackedConn ends its request when it is closed.
type hijackedConn struct {
	net.Conn
	request *request
}

// NetConn is the connection of the server.
func (c *hijackedConn) NetConn() net.Conn { return c.Conn }

func (c *hijackedConn) Close() error {
	c.request.mu.Lock()
	c.request.closed = true
	over := c.request.returned
	c.request.mu.Unlock()
	if over {
		c.request.guard.remove(c.request)
	}
	return c.Conn.Close()
}

// requestBody is a request's body that ends when the request is cut: a handler must not act on what
// the client sends afterwards.
type requestBody request

func (b *requestBody) Read(p []byte) (int, error) {
	if b.revoked.Load() {
		return 0, errRevoked
	}
	n, err := b.body.Read(p)
	if b.revoked.Load() {
		return 0, errRevoked
	}
	return n, err
}

func (b *requestBody) Close() error { return b.body.Close() }
