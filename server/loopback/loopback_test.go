package loopback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
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
	if response.StatusCode != http.StatusTeapot || string(body) != "answer" || response.Header.Get("X-Seen") != "/path?q=1 question" || response.Header.Get("X-Late") != "" {
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
