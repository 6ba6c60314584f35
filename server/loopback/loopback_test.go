package loopback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var somebody = &user.DefaultInfo{Name: "somebody", Groups: []string{"group"}}

func client(s *Server) *http.Client { return &http.Client{Transport: s.Config(somebody).Transport} }

func get(t *testing.T, s *Server, path string) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return client(s).Do(r)
}

func TestServer_CarriesRequestAndResponse(t *testing.T) {
	s := NewServer()
	s.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Seen", r.URL.RequestURI()+" "+string(body))
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "must not be sent")
		_, _ = io.WriteString(w, "answer")
	}))
	response, err := client(s).Post(Host+"/path?q=1", "text/plain", strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusTeapot || string(body) != "answer" ||
		response.Header.Get("X-Seen") != "/path?q=1 question" || response.Header.Get("X-Late") != "" {
		t.Errorf("got %d %q %v", response.StatusCode, body, response.Header)
	}
}

func TestServer_StreamsBeforeTheHandlerEnds(t *testing.T) {
	s := NewServer()
	more, ended := make(chan struct{}), make(chan error, 1)
	s.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-more
		_, _ = io.WriteString(w, "second")
		<-r.Context().Done()
		ended <- r.Context().Err()
	}))
	response, err := get(t, s, "/watch")
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 16)
	if n, err := response.Body.Read(buffer); err != nil || string(buffer[:n]) != "first" {
		t.Fatalf("read %q, %v", buffer[:n], err)
	}
	close(more)
	if n, err := response.Body.Read(buffer); err != nil || string(buffer[:n]) != "second" {
		t.Fatalf("read %q, %v", buffer[:n], err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler was not told that its client had gone: %v", err)
	}
}

func TestServer_SlowReaderHoldsTheHandler(t *testing.T) {
	s := NewServer()
	const size = 4 * maxBuffered
	s.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range size / 1024 {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
		}
	}))
	response, err := get(t, s, "/")
	if err != nil {
		t.Fatal(err)
	}
	buffered := response.Body.(*stream)
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil || n != size {
		t.Fatalf("read %d bytes, %v; want %d", n, err, size)
	}
	if room := buffered.buffer.Cap(); room > 2*maxBuffered {
		t.Errorf("%d bytes were kept for a slow reader", room)
	}
	_ = response.Body.Close()
}

func TestServer_WaitsForTheHandlerAndStopsWhenClosed(t *testing.T) {
	s := NewServer()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, Host+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(s).Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before Serve: %v, want to wait until the deadline", err)
	}
	s.Serve(http.NotFoundHandler())
	s.Close()
	s.Close()
	if _, err := get(t, s, "/"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

func TestServer_HandlerThatBreaksOffIsNoCompleteAnswer(t *testing.T) {
	s := NewServer()
	s.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	}))
	response, err := get(t, s, "/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err == nil {
		t.Errorf("read %q without an error", body.String())
	}
}

func TestAuthenticator_KnowsOnlyRequestsFromInside(t *testing.T) {
	next := authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "from outside"}}, true, nil
	})
	seen := make(chan string, 1)
	authenticate := Authenticator(next)
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		response, _, err := authenticate.AuthenticateRequest(r)
		if err != nil {
			t.Error(err)
		}
		seen <- response.User.GetName()
	})
	s := NewServer()
	s.Serve(handler)
	response, err := get(t, s, "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if name := <-seen; name != "somebody" {
		t.Errorf("inside: %q", name)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Remote-User", "somebody")
	handler.ServeHTTP(nil, r)
	if name := <-seen; name != "from outside" {
		t.Errorf("outside: %q", name)
	}
}

// trackedBody is a request's body whose Close can be waited for. Read blocks until then once its
// text has been read.
type trackedBody struct {
	text   io.Reader
	once   sync.Once
	closed chan struct{}
}

func newBody(text string) *trackedBody {
	return &trackedBody{text: strings.NewReader(text), closed: make(chan struct{})}
}

func (b *trackedBody) Read(p []byte) (int, error) {
	if n, _ := b.text.Read(p); n > 0 {
		return n, nil
	}
	<-b.closed
	return 0, errors.New("read after close")
}

func (b *trackedBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

func (b *trackedBody) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// roundTrip sends a request whose body is tracked, past http.Client, which closes bodies itself.
func roundTrip(ctx context.Context, t *testing.T, s *Server, body io.ReadCloser) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, Host+"/path", body)
	if err != nil {
		t.Fatal(err)
	}
	return s.Config(somebody).Transport.RoundTrip(r)
}

// writeUntilError fills the response far beyond its buffer, as a handler that ignores its context.
func writeUntilError(w io.Writer) error {
	for range 16 * maxBuffered / 1024 {
		if _, err := w.Write(make([]byte, 1024)); err != nil {
			return err
		}
	}
	return nil
}

// The handler must end however the client goes away: it holds a seat of priority and fairness, and
// the shutdown waits for it.
func TestServer_ClientGoesAway_HandlerEndsAndBodyIsClosed(t *testing.T) {
	type request struct {
		cancel   context.CancelFunc
		response chan *http.Response
	}
	for name, row := range map[string]struct {
		// before the header is sent, after it the client has a response.
		before bool
		handle func(http.ResponseWriter, *http.Request) error
		leave  func(request)
	}{
		"before the header, handler writes": {
			before: true,
			handle: func(w http.ResponseWriter, r *http.Request) error {
				<-r.Context().Done()
				return writeUntilError(w)
			},
			leave: func(r request) { r.cancel() },
		},
		"before the header, handler reads": {
			before: true,
			handle: func(_ http.ResponseWriter, r *http.Request) error {
				_, err := io.ReadAll(r.Body)
				return err
			},
			leave: func(r request) { r.cancel() },
		},
		"context ends while the handler writes": {
			handle: func(w http.ResponseWriter, _ *http.Request) error { return writeUntilError(w) },
			leave: func(r request) {
				<-r.response
				r.cancel()
			},
		},
		"response closed while the handler writes": {
			handle: func(w http.ResponseWriter, _ *http.Request) error { return writeUntilError(w) },
			leave:  func(r request) { _ = (<-r.response).Body.Close() },
		},
		"response closed while the handler reads": {
			handle: func(w http.ResponseWriter, r *http.Request) error {
				w.(http.Flusher).Flush()
				_, err := io.ReadAll(r.Body)
				return err
			},
			leave: func(r request) { _ = (<-r.response).Body.Close() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, ended := NewServer(), make(chan error, 1)
				s.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { ended <- row.handle(w, r) }))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				body, response := newBody("text"), make(chan *http.Response, 1)
				var client sync.WaitGroup
				client.Go(func() {
					got, err := roundTrip(ctx, t, s, body)
					if row.before != errors.Is(err, context.Canceled) {
						t.Errorf("RoundTrip returned %v", err)
					}
					response <- got
				})
				synctest.Wait()
				row.leave(request{cancel, response})
				client.Wait()
				synctest.Wait()
				select {
				case err := <-ended:
					if err == nil {
						t.Error("the handler does not notice that its client is gone")
					}
				default:
					t.Error("the handler is still running")
				}
				if !body.isClosed() {
					t.Error("the request's body is open")
				}
			})
		})
	}
}

func TestServer_EveryPathClosesTheBody(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	nothing := func(http.ResponseWriter, *http.Request) {}
	for name, row := range map[string]struct {
		ctx    context.Context
		handle http.HandlerFunc
		close  bool
		failed bool
	}{
		"no handler yet":            {ctx: canceled, failed: true},
		"canceled before the start": {ctx: canceled, handle: nothing, failed: true},
		"server closed":             {handle: nothing, close: true, failed: true},
		"server closed, no handler": {close: true, failed: true},
		"handler does not read":     {handle: nothing},
		"handler panics": {handle: func(http.ResponseWriter,
			*http.Request) {
			panic(http.ErrAbortHandler)
		}, failed: true},
		"handler ends its goroutine": {handle: func(http.ResponseWriter, *http.Request) { goruntime.Goexit() },
			failed: true},
		"handler panics after header": {handle: func(w http.ResponseWriter,
			_ *http.Request) {
			w.WriteHeader(200)
			panic("broken")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewServer()
				if row.handle != nil {
					s.Serve(row.handle)
				}
				if row.close {
					s.Close()
				}
				ctx := t.Context()
				if row.ctx != nil {
					ctx = row.ctx
				}
				body := newBody("text")
				response, err := roundTrip(ctx, t, s, body)
				if row.failed != (err != nil) {
					t.Errorf("response %v, error %v", response, err)
				}
				synctest.Wait()
				if !body.isClosed() {
					t.Error("the request's body is open")
				}
				if response != nil {
					_ = response.Body.Close()
				}
			})
		})
	}
}

// A shutdown refuses new requests and leaves those that run to the API server, which drains them.
func TestServer_Close_RunningRequestsGoOn(t *testing.T) {
	s, more := NewServer(), make(chan struct{})
	s.Serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-more
		_, _ = io.WriteString(w, "whole")
	}))
	response, err := get(t, s, "/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	s.Close()
	if _, err := get(t, s, "/"); !errors.Is(err, ErrClosed) {
		t.Errorf("a new request: %v, want ErrClosed", err)
	}
	close(more)
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "whole" {
		t.Errorf("the running request: %q, %v", body, err)
	}
}

// A response that the context cut short must not look complete once its handler has returned.
func TestServer_ContextEnds_ResponseIsNotComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer()
		s.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			<-r.Context().Done()
		}))
		ctx, cancel := context.WithCancel(t.Context())
		response, err := roundTrip(ctx, t, s, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if body, err := io.ReadAll(response.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("read %q, %v", body, err)
		}
		_ = response.Body.Close()
	})
}

func TestServer_WhatAConnectionWouldOffer(t *testing.T) {
	for name, row := range map[string]struct {
		handle http.HandlerFunc
		status int
	}{
		"an informational response is not the response": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusEarlyHints)
				w.WriteHeader(http.StatusTeapot)
			}, http.StatusTeapot,
		},
		"switching protocols is": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusSwitchingProtocols) },
			http.StatusSwitchingProtocols,
		},
		"flush sends the header": {
			func(w http.ResponseWriter, r *http.Request) {
				if err := http.NewResponseController(w).Flush(); err != nil {
					w.WriteHeader(http.StatusInternalServerError)
				}
				<-r.Context().Done()
			}, http.StatusOK,
		},
		"there is nothing to hijack": {
			func(w http.ResponseWriter, _ *http.Request) {
				if _, _, err := http.NewResponseController(w).Hijack(); errors.Is(err, http.ErrNotSupported) {
					w.WriteHeader(http.StatusTeapot)
				}
			}, http.StatusTeapot,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewServer()
			s.Serve(row.handle)
			response, err := get(t, s, "/")
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != row.status {
				t.Errorf("status is %s, want %d", response.Status, row.status)
			}
			_ = response.Body.Close()
		})
	}
}
