package tunnel

import (
	"errors"
	"net"
	"slices"
	"testing"
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
