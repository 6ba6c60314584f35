package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/net/http2"

	"github.com/mote-dev/mote/internal/joinapi"
)

const (
	// maxRefusal bounds how much of a node's error message is read.
	maxRefusal = 1 << 10
	// maxHeader bounds the header of a node's answer, which says no more than a status.
	maxHeader = 16 << 10
)

// errTunnelEnded is what streams end with when their tunnel does.
var errTunnelEnded = errors.New("the tunnel to the node ended")

// session is one connection a node opened, with HTTP/2 on it.
type session struct {
	server *Server
	node   string
	client *http2.ClientConn
	conn   *ending
	// retired is whether another session has taken over.
	retired atomic.Bool
}

// ending is a connection with a channel that is closed when it is.
type ending struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

// Close closes the socket below TLS first: TLS would send close_notify, which blocks on a peer that
// is gone. The layers in between are closed as well, as they may count their connections.
func (e *ending) Close() error {
	err := net.ErrClosed
	e.once.Do(func() {
		socket := e.Conn
		for upper, ok := socket.(lower); ok; upper, ok = socket.(lower) {
			socket = upper.NetConn()
		}
		err = socket.Close()
		if socket != e.Conn {
			_ = e.Conn.Close()
		}
		close(e.ended)
	})
	return err
}

// lower is a connection on top of another one, such as TLS.
type lower interface{ NetConn() net.Conn }

// newTransport returns the HTTP/2 transport of all sessions.
func newTransport(c Config) (*http2.Transport, error) {
	transport, err := http2.ConfigureTransports(&http.Transport{DisableCompression: true, HTTP2: &http.HTTP2Config{
		SendPingTimeout:               c.PingAfter,
		PingTimeout:                   c.PingTimeout,
		MaxReceiveBufferPerStream:     joinapi.TunnelStreamWindow,
		MaxReceiveBufferPerConnection: joinapi.TunnelWindow,
	}})
	if err != nil {
		return nil, fmt.Errorf("set up HTTP/2 of tunnels: %w", err)
	}
	// Ten megabytes otherwise, of each stream, from a node that need not be honest.
	transport.MaxHeaderListSize = maxHeader
	// Dials beyond a node's limit of streams wait instead of failing.
	transport.StrictMaxConcurrentStreams = true
	return transport, nil
}

// open turns a connection that has switched protocols into the node's current session. On an error
// the connection is closed.
func (s *Server) open(conn net.Conn, node string) (*session, error) {
	e := &ending{Conn: conn, ended: make(chan struct{})}
	client, err := s.transport.NewClientConn(e)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("speak HTTP/2 with node %s: %w", node, err), e.Close())
	}
	n := &session{
		server: s,
		node:   node,
		client: client,
		conn:   e,
	}
	s.log.Debug("node has a tunnel", zap.String("node", node), zap.Stringer("from", conn.RemoteAddr()))
	s.add(n)
	return n, nil
}

// over reports whether the session takes no new streams any more. It does not block; the client's
// State would, on a write that hangs.
func (n *session) over() bool {
	select {
	case <-n.conn.ended:
		return true
	default:
		return n.retired.Load() || !n.client.CanTakeNewRequest()
	}
}

// close ends the session and its streams.
func (n *session) close() {
	_ = n.conn.Close()
	_ = n.client.Close()
}

// retire ends the session once its streams have ended.
func (n *session) retire() {
	if n.retired.Swap(true) {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-n.conn.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	if err := n.client.Shutdown(ctx); err != nil {
		// Not even the GOAWAY frame could be sent.
		n.close()
	}
	cancel()
	watch.Wait()
}

// dial opens a stream to a target.
func (n *session) dial(ctx context.Context, target string) (net.Conn, error) {
	if !n.server.begin() {
		return nil, fmt.Errorf("connect to node %s: %w", n.node, errTunnelEnded)
	}
	// Not a child of ctx: the stream outlives the dial, and must not inherit another request's
	// trace.
	streamContext, abort := context.WithCancel(context.Background())
	c := newStream(n, target, abort)
	undo := context.AfterFunc(ctx, abort)
	request := (&http.Request{
		Method:        http.MethodConnect,
		URL:           &url.URL{Scheme: "https", Host: target},
		Host:          target,
		Header:        http.Header{},
		Body:          c.body,
		ContentLength: -1,
	}).WithContext(streamContext)
	response, err := n.client.RoundTrip(request)
	if !undo() {
		// ctx has ended, and with it the stream that RoundTrip may have opened.
		if err == nil {
			_ = response.Body.Close()
		}
		err = ctx.Err()
	}
	if err == nil && response.StatusCode != http.StatusOK {
		err = refusal(response)
	}
	if err != nil {
		abort()
		n.server.work.Done()
		return nil, fmt.Errorf("connect to %s through the tunnel of node %s: %w", target, n.node, err)
	}
	n.server.counters.streams.Inc()
	go func() {
		defer n.server.work.Done()
		defer n.server.counters.streams.Dec()
		c.receive(response.Body)
	}()
	return c, nil
}

// refusal returns the node's error message.
func refusal(response *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	err = errors.Join(err, response.Body.Close())
	text, _, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
	if err != nil || text == "" {
		text = response.Status
	}
	return errors.New(text)
}
