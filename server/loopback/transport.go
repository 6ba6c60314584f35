package loopback

import (
	"context"
	"errors"
	"fmt"
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

// Server is the in-process door to a handler that may not exist yet: requests
// wait until Serve names it.
type Server struct {
	mu      sync.Mutex
	handler http.Handler
	ready   chan struct{}
	closed  chan struct{}
	once    sync.Once
}

// NewServer makes a door with nothing behind it.
func NewServer() *Server {
	return &Server{ready: make(chan struct{}), closed: make(chan struct{})}
}

// Serve puts h behind the door. It is called once.
func (s *Server) Serve(h http.Handler) {
	s.mu.Lock()
	s.handler = h
	s.mu.Unlock()
	close(s.ready)
}

// Close ends waiting requests and refuses new ones; running ones go on until
// the handler ends them.
func (s *Server) Close() {
	s.once.Do(func() { close(s.closed) })
}

// Config returns a client configuration that speaks as u, without rate limit:
// the limits of upstream's clients protect a server from far-away processes,
// not from itself (priority and fairness still applies).
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

// identityKey marks a request that came through a Server. Requests from the
// network get a context made by net/http and can never carry it.
type identityKey struct{}

// Authenticator recognises requests that came through this package and leaves
// all others to next.
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

// RoundTrip hands the request to the handler and returns as soon as the
// response's header is known; the body streams.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-t.server.ready:
	case <-t.server.closed:
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, ErrClosed)
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	select {
	case <-t.server.closed:
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, ErrClosed)
	default:
	}

	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), identityKey{}, t.user))
	inner := r.Clone(ctx)
	inner.RequestURI = r.URL.RequestURI()
	inner.Host = r.URL.Host
	inner.RemoteAddr = "127.0.0.1:0"
	inner.Proto, inner.ProtoMajor, inner.ProtoMinor = "HTTP/2.0", 2, 0
	if inner.Body == nil {
		inner.Body = http.NoBody
	}

	body := newStream(cancel)
	w := &responseWriter{header: make(http.Header), body: body, started: make(chan struct{})}
	// The response's body owns this goroutine: reading it to the end or closing
	// it is what ends the handler, as with a connection.
	go func() {
		defer cancel()
		defer func() {
			// http.ErrAbortHandler is how a handler breaks off a response.
			if p := recover(); p != nil {
				body.finish(fmt.Errorf("%s %s: handler broke off: %v", r.Method, r.URL.Path, p))
				w.start(http.StatusInternalServerError)
				return
			}
			w.start(http.StatusOK)
			body.finish(nil)
		}()
		t.server.handler.ServeHTTP(w, inner)
	}()

	select {
	case <-w.started:
	case <-r.Context().Done():
		cancel()
		return nil, r.Context().Err()
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
