package loopback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Host is the name in-process clients use for the API server. It is never resolved.
const Host = "https://mote.in-process"

// ErrClosed is returned for requests made after the API server has stopped.
var ErrClosed = errors.New("API server has stopped")

// Server is the in-process transport to a handler that may not exist yet: requests wait until Serve
// provides it.
type Server struct {
	mu      sync.Mutex
	handler http.Handler
	ready   chan struct{}
	closed  chan struct{}
	once    sync.Once
}

// NewServer returns a server without a handler.
func NewServer() *Server {
	return &Server{ready: make(chan struct{}), closed: make(chan struct{})}
}

// Serve makes h the handler. It is called once.
func (s *Server) Serve(h http.Handler) {
	s.mu.Lock()
	s.handler = h
	s.mu.Unlock()
	close(s.ready)
}

// Close ends waiting requests and refuses new ones; running ones go on until the handler ends them.
func (s *Server) Close() {
	s.once.Do(func() { close(s.closed) })
}

// wait waits until there is a handler for r.
func (s *Server) wait(r *http.Request) error {
	select {
	case <-s.ready:
	case <-s.closed:
	case <-r.Context().Done():
	}
	// More than one may be true: what refuses a request comes first.
	select {
	case <-s.closed:
		return fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, ErrClosed)
	default:
		return r.Context().Err()
	}
}

// Config returns a client configuration that authenticates as u, without rate limit: upstream's
// client-side limits protect a server from other processes, not from itself. Priority and fairness
// still applies.
func (s *Server) Config(u user.Info) *rest.Config {
	return &rest.Config{
		Host:      Host,
		Transport: &transport{server: s, user: u},
		UserAgent: "mote/" + u.GetName(),
		QPS:       -1,
		ContentConfig: rest.ContentConfig{
			AcceptContentTypes:   "application/vnd.kubernetes.protobuf,application/json",
			ContentType:          "application/vnd.kubernetes.protobuf",
			NegotiatedSerializer: serializer.WithoutConversionCodecFactory{CodecFactory: scheme.Codecs},
		},
		DisableCompression: true,
	}
}

// identityKey marks a request that came through a Server. Requests from the network get their
// context from net/http and cannot carry it.
type identityKey struct{}

// Authenticator authenticates requests that came through this package and leaves all others to
// next.
func Authenticator(next authenticator.Request) authenticator.Request {
	return authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		if u, ok := r.Context().Value(identityKey{}).(user.Info); ok {
			return &authenticator.Response{User: u}, true, nil
		}
		return next.AuthenticateRequest(r)
	})
}

type transport struct {
	server *Server
	user   user.Info
}

// RoundTrip hands the request to the handler and returns as soon as the response's header is known;
// the body streams.
//
// The request ends, for the handler as over a connection, when the handler returns, when the
// response's body is closed or when the request's context ends. From then on the handler's writes
// fail. The request's body is closed on every path, also without a response.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.server.wait(r); err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), identityKey{}, t.user))
	inner := r.Clone(ctx)
	inner.RequestURI = r.URL.RequestURI()
	inner.Host = r.URL.Host
	inner.RemoteAddr = "127.0.0.1:0"
	inner.Proto, inner.ProtoMajor, inner.ProtoMinor = "HTTP/2.0", 2, 0
	closeBody := func() {}
	switch r.Body {
	case nil, http.NoBody:
		// The standard library and the API server recognise an empty body by its identity.
		inner.Body = http.NoBody
	default:
		b := &requestBody{ReadCloser: r.Body}
		inner.Body, closeBody = b, func() { _ = b.Close() }
	}
	body := newStream(func() {
		cancel()
		closeBody()
	})
	w := &responseWriter{header: make(http.Header), body: body, started: make(chan struct{})}
	// A handler that does not look at its context blocks in a read or a write: end both.
	unwatch := context.AfterFunc(r.Context(), func() {
		body.finish(r.Context().Err())
		closeBody()
	})
	// The client owns this goroutine: reading the response's body to its end, closing it or ending
	// the request's context is what ends the handler.
	go func() {
		defer cancel()
		defer closeBody()
		defer unwatch()
		returned := false
		defer func() {
			if !returned {
				// A panic is how handlers break off a response; runtime.Goexit recovers as nil.
				err := fmt.Errorf("%s %s: handler broke off: %v", r.Method, r.URL.Path, recover())
				w.fail(err)
				body.finish(err)
				return
			}
			w.start(http.StatusOK)
			// A handler that returned because the context ended has not written all.
			body.finish(r.Context().Err())
		}()
		t.server.handler.ServeHTTP(w, inner)
		returned = true
	}()

	select {
	case <-w.started:
	case <-r.Context().Done():
		_ = body.Close()
		return nil, r.Context().Err()
	}
	if w.err != nil {
		return nil, w.err
	}
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)),
		StatusCode:    w.status,
		Proto:         "HTTP/2.0",
		ProtoMajor:    2,
		Header:        w.sent,
		Body:          body,
		ContentLength: -1,
		Request:       r,
	}, nil
}

// requestBody is a request's body. Handler and client may close it at the same time.
type requestBody struct {
	io.ReadCloser
	once sync.Once
	err  error
}

// Close implements io.Closer.
func (b *requestBody) Close() error {
	b.once.Do(func() { b.err = b.ReadCloser.Close() })
	return b.err
}
