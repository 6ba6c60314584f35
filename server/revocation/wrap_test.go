package revocation

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/proxy"

	"github.com/mote-dev/mote/internal/joinapi"
)

// protocols are what clients of an API server speak.
var protocols = []struct {
	name string
	two  bool
}{{"HTTP1", false}, {"HTTP2", true}}

// serve puts a handler behind the guard and TLS that asks for client certificates.
func (g *guarded) serve(ca *authority, two bool, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(g.Wrap(h))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	s.EnableHTTP2 = two
	s.StartTLS()
	g.t.Cleanup(s.Close)
	return s
}

// as is a client with a certificate, or none.
func as(t testing.TB, s *httptest.Server, certs ...tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs},
		ForceAttemptHTTP2: s.EnableHTTP2}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func get(t testing.TB, c *http.Client, address string) (int, http.Header, string) {
	t.Helper()
	response, err := c.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(body)
}

func wantRevoked(t testing.TB, code int, body string) {
	t.Helper()
	var status metav1.Status
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatalf("%d %q: %v", code, body, err)
	}
	if code != http.StatusUnauthorized || status.Code != http.StatusUnauthorized ||
		status.Reason != metav1.StatusReasonUnauthorized || status.Kind != "Status" ||
		!strings.Contains(status.Message, "was revoked at 20") {
		t.Errorf("%d %+v", code, status)
	}
}

func TestGuard_Wrap_RefusesAtOnceAndNobodyElse(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ca, g := newAuthority(t), guard(t, nil)
			s := g.serve(ca, p.two, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
			leaked, other := ca.issue(t, "erika", time.Now()), ca.issue(t, "erika", time.Now())
			thief, owner, nobody := as(t, s, leaked), as(t, s, other), as(t, s)
			if code, _, body := get(t, thief, s.URL); code != 200 || strings.HasPrefix(body, "HTTP/2") != p.two {
				t.Fatalf("before: %d %q", code, body)
			}
			e := ForCertificate(leaked.Leaf)
			e.Reason = "secret of the house"
			g.revoke(e, leaked.Leaf)
			// On the connection that is open, and on a new one.
			for _, c := range []*http.Client{thief, as(t, s, leaked)} {
				code, header, body := get(t, c, s.URL)
				wantRevoked(t, code, body)
				if !strings.Contains(body, "mote kubeconfig create") ||
					!strings.Contains(header.Get("Warning"), "was revoked") {
					t.Errorf("not said what to do: %v %q", header, body)
				}
				if strings.Contains(body, e.Reason) {
					t.Errorf("the reason is told to whom it is about: %q", body)
				}
			}
			for _, c := range []*http.Client{owner, nobody} {
				if code, _, body := get(t, c, s.URL); code != 200 {
					t.Errorf("somebody else is refused: %d %q", code, body)
				}
			}
			if n := g.lines("refused a revoked certificate"); n != 1 {
				t.Errorf("%d lines about the refusals, want 1", n)
			}
			g.idle()
		})
	}
}

// idle waits until no request is known any more: none may leak.
func (g *guarded) idle() {
	g.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		g.mu.Lock()
		n := len(g.requests)
		g.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%d requests are still known", n)
		}
		<-time.After(time.Millisecond)
	}
}

func TestGuard_Wrap_CutsRunningWatches(t *testing.T) {
	for _, p := range protocols {
		for _, row := range []struct {
			name   string
			handle func(w http.ResponseWriter, r *http.Request)
		}{
			{"waiting", func(w http.ResponseWriter, r *http.Request) {
				// As upstream's watch: flushed before anything is written.
				w.(http.Flusher).Flush()
				fmt.Fprintln(w, "event")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}},
			{"deaf to its context", func(w http.ResponseWriter, r *http.Request) {
				for {
					if _, err := fmt.Fprintln(w, "event"); err != nil {
						return
					}
					w.(http.Flusher).Flush()
				}
			}},
		} {
			t.Run(p.name+"/"+row.name, func(t *testing.T) {
				ca, g := newAuthority(t), guard(t, nil)
				s := g.serve(ca, p.two, row.handle)
				leaked, other := ca.issue(t, "erika", time.Now().Add(-time.Hour)), ca.issue(t, "max", time.Now())
				watch := func(cert tls.Certificate) (*bufio.Reader, context.CancelFunc) {
					ctx, cancel := context.WithCancel(t.Context())
					t.Cleanup(cancel)
					request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
					if err != nil {
						t.Fatal(err)
					}
					response, err := as(t, s, cert).Do(request)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = response.Body.Close() })
					lines := bufio.NewReader(response.Body)
					if line, err := lines.ReadString('\n'); line != "event\n" {
						t.Fatalf("%q, %v", line, err)
					}
					return lines, cancel
				}
				cut, _ := watch(leaked)
				kept, end := watch(other)
				g.revoke(ForUser("erika", time.Now()), leaked.Leaf)
				if _, err := io.Copy(io.Discard, cut); err == nil {
					t.Error("the watch ended as if it were complete")
				}
				g.mu.Lock()
				if n := len(g.requests); n > 2 {
					t.Errorf("%d requests are known, want 2 at most", n)
				}
				g.mu.Unlock()
				if row.name != "waiting" {
					if _, err := kept.ReadString('\n'); err != nil {
						t.Errorf("somebody else's watch was cut: %v", err)
					}
				}
				end()
				g.idle()
			})
		}
	}
}

func TestGuard_Wrap_RequestThatHasNotAnsweredIsToldWhy(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ca, g := newAuthority(t), guard(t, nil)
			begun := make(chan struct{})
			s := g.serve(ca, p.two, func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				<-r.Context().Done()
				w.Header().Set("Content-Length", "3")
				http.Error(w, "context ended", http.StatusInternalServerError)
			})
			cert := ca.issue(t, "erika", time.Now())
			var client sync.WaitGroup
			client.Go(func() {
				code, _, body := get(t, as(t, s, cert), s.URL)
				wantRevoked(t, code, body)
			})
			<-begun
			g.revoke(ForCertificate(cert.Leaf), cert.Leaf)
			client.Wait()
			g.idle()
		})
	}
}

func TestGuard_Wrap_NothingSentLaterIsActedOn(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ca, g := newAuthority(t), guard(t, nil)
			begun, read := make(chan struct{}), make(chan error, 1)
			s := g.serve(ca, p.two, func(_ http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadFull(r.Body, make([]byte, 5)); err != nil {
					t.Error(err)
				}
				close(begun)
				_, err := io.ReadAll(r.Body)
				read <- err
			})
			cert := ca.issue(t, "erika", time.Now())
			body, send := io.Pipe()
			client := as(t, s, cert)
			var sending sync.WaitGroup
			sending.Go(func() {
				response, err := client.Post(s.URL, "text/plain", body)
				if err == nil {
					_ = response.Body.Close()
				}
			})
			_, _ = io.WriteString(send, "begin")
			<-begun
			g.revoke(ForCertificate(cert.Leaf), cert.Leaf)
			sending.Go(func() {
				_, _ = io.WriteString(send, "end")
				_ = send.Close()
			})
			if err := <-read; !errors.Is(err, errRevoked) {
				t.Errorf("the handler read the rest: %v", err)
			}
			sending.Wait()
			g.idle()
		})
	}
}

func TestGuard_Wrap_TellsNodesInTheirOwnWords(t *testing.T) {
	ca, g := newAuthority(t), guard(t, nil)
	s := g.serve(ca, true, func(http.ResponseWriter, *http.Request) {})
	cert := ca.issue(t, NodeUser("pi"), time.Now())
	node := as(t, s, cert)
	told := func() joinapi.Error {
		t.Helper()
		code, _, body := get(t, node, s.URL+joinapi.PathConfig)
		var refusal joinapi.Error
		if err := json.Unmarshal([]byte(body), &refusal); err != nil || code != http.StatusUnauthorized ||
			refusal.ServerTime.IsZero() || !strings.Contains(refusal.Message, "mote node forget pi") {
			t.Errorf("%d %q, %v", code, body, err)
		}
		return refusal
	}
	g.revoke(ForUser(NodeUser("pi"), time.Now()), cert.Leaf)
	if got := told(); got.Code != joinapi.CodeNodeRevoked {
		t.Errorf("a revoked node is told %+v", got)
	}
	// To the API it is what it is to everybody.
	code, _, body := get(t, node, s.URL+"/api")
	wantRevoked(t, code, body)
	if _, err := Readmit(t.Context(), g.client, "pi"); err != nil {
		t.Fatal(err)
	}
	g.until("node may join", func() bool { return !g.nodeRevoked("pi") })
	if got := told(); got.Code != joinapi.CodeCertificateInvalid {
		t.Errorf("a node that may join again is told %+v", got)
	}
}

// hijack opens a connection that a handler takes over, and returns it after the first echo.
func hijack(t *testing.T, s *httptest.Server, cert tls.Certificate) net.Conn {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", u.Host,
		&tls.Config{RootCAs: pool, ServerName: "example.com", Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", response, err)
	}
	fmt.Fprint(conn, "hello\n")
	if line, err := reader.ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return conn
}

// echo takes the connection over and answers what it is told.
func echo(w http.ResponseWriter) (net.Conn, error) {
	conn, buffer, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return nil, err
	}
	fmt.Fprint(buffer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	return conn, buffer.Flush()
}

func TestGuard_Wrap_CutsConnectionsThatWereTakenOver(t *testing.T) {
	var outliving sync.WaitGroup
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, err := echo(w)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.Copy(conn, conn)
	}))
	defer backend.Close()
	location, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"while the handler runs", func(w http.ResponseWriter, _ *http.Request) {
			conn, err := echo(w)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.Copy(conn, conn)
		}},
		{"after the handler returned", func(w http.ResponseWriter, _ *http.Request) {
			conn, err := echo(w)
			if err != nil {
				t.Error(err)
				return
			}
			outliving.Go(func() {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(conn, conn)
			})
		}},
		{"by the API server's proxy", func(w http.ResponseWriter, r *http.Request) {
			proxy.NewUpgradeAwareHandler(location, nil, false, true, failing{t}).ServeHTTP(w, r)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			ca, g := newAuthority(t), guard(t, nil)
			s := g.serve(ca, false, row.handle)
			leaked, other := ca.issue(t, "erika", time.Now()), ca.issue(t, "max", time.Now())
			cut, kept := hijack(t, s, leaked), hijack(t, s, other)
			g.revoke(ForCertificate(leaked.Leaf), leaked.Leaf)
			if n, err := cut.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the connection goes on: %d, %v", n, err)
			}
			fmt.Fprint(kept, "still\n")
			if line, err := bufio.NewReader(kept).ReadString('\n'); line != "still\n" {
				t.Errorf("somebody else's connection: %q, %v", line, err)
			}
			_ = kept.Close()
			g.idle()
		})
	}
	outliving.Wait()
}

type failing struct{ t *testing.T }

func (f failing) Error(_ http.ResponseWriter, _ *http.Request, err error) { f.t.Error(err) }

func TestGuard_Wrap_WaitsForTheListAndThenGoesOn(t *testing.T) {
	ca := newAuthority(t)
	revoked, other := ca.issue(t, "erika", time.Now()), ca.issue(t, "max", time.Now())
	text, err := ForCertificate(revoked.Leaf).encode()
	if err != nil {
		t.Fatal(err)
	}
	g := idle(t, map[string]string{"serial": strings.Replace(text, "{", `{"time":"2026-11-26T00:00:00Z",`, 1)})
	s := g.serve(ca, true, func(http.ResponseWriter, *http.Request) {})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if code, _, _ := get(t, as(t, s, other), s.URL); code != 200 {
			t.Errorf("a certificate that is not revoked: %d", code)
		}
	})
	waiting.Go(func() {
		code, _, body := get(t, as(t, s, revoked), s.URL)
		wantRevoked(t, code, body)
	})
	// Without a certificate nothing waits.
	if code, _, _ := get(t, as(t, s), s.URL); code != 200 {
		t.Errorf("without a certificate: %d", code)
	}
	g.run()
	waiting.Wait()
}

func TestGuard_Wrap_RefusesWhileTheListCannotBeRead(t *testing.T) {
	ca, g := newAuthority(t), idle(t, nil)
	g.config.Wait = 10 * time.Millisecond
	s := g.serve(ca, true, func(http.ResponseWriter, *http.Request) { t.Error("let in") })
	code, header, body := get(t, as(t, s, ca.issue(t, "erika", time.Now())), s.URL)
	if code != http.StatusServiceUnavailable || header.Get("Retry-After") == "" ||
		!strings.Contains(body, "not been read") {
		t.Errorf("%d %v %q", code, header, body)
	}
}

func TestGuard_Wrap_KeepsWhatHandlersAskOfAWriter(t *testing.T) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ca, g := newAuthority(t), guard(t, nil)
			s := g.serve(ca, p.two, func(w http.ResponseWriter, _ *http.Request) {
				if _, ok := w.(http.Flusher); !ok {
					t.Error("no http.Flusher")
				}
				//nolint:staticcheck // Upstream's wrappers still ask for it.
				if _, ok := w.(http.CloseNotifier); !ok {
					t.Error("no http.CloseNotifier")
				}
				if _, ok := w.(http.Hijacker); ok == p.two {
					t.Errorf("http.Hijacker is %v", ok)
				}
				if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Errorf("set deadline: %v", err)
				}
			})
			if code, _, _ := get(t, as(t, s, ca.issue(t, "erika", time.Now())), s.URL); code != 200 {
				t.Errorf("%d", code)
			}
		})
	}
}

func BenchmarkGuard_Wrap(b *testing.B) {
	ca, g := newAuthority(b), guard(b, nil)
	h := g.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.issue(b, "erika", time.Now()).Leaf}}
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
