package tunnel

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// layered is a connection on another one that writes down who is closed.
type layered struct {
	net.Conn
	name   string
	closed *[]string
}

func (l layered) NetConn() net.Conn { return l.Conn }

func (l layered) Close() error {
	*l.closed = append(*l.closed, l.name)
	return l.Conn.Close()
}

type socket struct {
	net.Conn
	closed *[]string
}

func (s socket) Close() error {
	*s.closed = append(*s.closed, "socket")
	return s.Conn.Close()
}

func TestEnding_Close_SocketFirstThenWhoKeepsAccount(t *testing.T) {
	var closed []string
	a, b := net.Pipe()
	defer b.Close()
	e := &ending{Conn: layered{layered{socket{a, &closed}, "TLS", &closed}, "account", &closed},
		ended: make(chan struct{})}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if want := []string{"socket", "account", "TLS", "socket"}; !slices.Equal(closed, want) {
		t.Errorf("closed were %v, want %v", closed, want)
	}
	select {
	case <-e.ended:
	default:
		t.Error("nobody is told")
	}
	if err := e.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closing twice: %v", err)
	}
}

// A node whose answers to dials have headers of any size costs the server no memory for them.
func TestSession_Dial_HugeHeaderOfNode(t *testing.T) {
	for name, size := range map[string]int{"a status": 0, "huge": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var node sync.WaitGroup
			node.Go(func() {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						w.Header().Set("X-Filler", strings.Repeat("x", size))
						w.WriteHeader(http.StatusOK)
					}),
				})
			})
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			n, err := s.open(conn, "n1")
			if err != nil {
				t.Fatal(err)
			}
			stream, err := n.dial(t.Context(), "10.42.1.7:80")
			if (err != nil) != (size > maxHeader) {
				t.Errorf("a header of %d bytes: %v", size, err)
			}
			if err == nil {
				_ = stream.Close()
			}
			n.close()
			_ = l.Close()
			node.Wait()
		})
	}
}
