package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"golang.org/x/net/http2"

	"github.com/mote-dev/mote/internal/joinapi"
)

// maxRefusal bounds how much of a server's refusal is read.
const maxRefusal = 64 << 10

// errClosed is the cause of a tunnel's end when the connection reported none.
var errClosed = errors.New("connection closed")

// duplicateError means that the server already has a tunnel to this node.
type duplicateError struct{ server string }

func (e *duplicateError) Error() string {
	return "server already has a tunnel to this node: " + e.server
}

// link is a connection that has become a tunnel.
type link struct {
	net.Conn
	// reader may hold bytes that arrived with the response.
	reader *bufio.Reader
	// server identifies the server's process.
	server string
	// ended is closed when the tunnel has ended; err is set before.
	ended chan struct{}
	err   error

	mu    sync.Mutex // guards cause
	cause error      // the first error of the connection
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.reader.Read(p)
	l.fail(err)
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.fail(err)
	return n, err
}

// Close closes the socket below TLS: a close notification would wait for a peer that may be gone.
func (l *link) Close() error {
	l.fail(errClosed)
	if t, ok := l.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return l.Conn.Close()
}

func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause == nil {
		l.cause = err
	}
}

// connect opens a tunnel to the server at address.
func (t *Tunnel) connect(ctx context.Context, address string, open []string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	config := t.config.TLS().Clone()
	// HTTP/2 has no protocol upgrade.
	config.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, config)
	l, err := upgrade(ctx, conn, config.ServerName, open)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return l, nil
}

// upgrade switches the connection to the tunnel's protocol.
func upgrade(ctx context.Context, conn *tls.Conn, host string, open []string) (*link, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("verify server: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+joinapi.PathTunnel, nil)
	if err != nil {
		return nil, fmt.Errorf("build request for tunnel: %w", err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", joinapi.TunnelProtocol)
	if len(open) > 0 {
		request.Header.Set(joinapi.HeaderTunnelHave, strings.Join(open, ","))
	}
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("request tunnel from server: %w", err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, fmt.Errorf("request tunnel from server: %w", err)
	}
	server := response.Header.Get(joinapi.HeaderTunnelServer)
	switch {
	case response.StatusCode == http.StatusSwitchingProtocols && server != "" &&
		response.Header.Get("Upgrade") == joinapi.TunnelProtocol:
		return &link{
			Conn:   conn,
			reader: reader,
			server: server,
			ended:  make(chan struct{}),
		}, nil
	case response.StatusCode == http.StatusConflict && server != "":
		return nil, errors.Join(&duplicateError{server}, response.Body.Close())
	}
	defer response.Body.Close()
	var refusal joinapi.Error
	data, err := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	if err == nil && json.Unmarshal(data, &refusal) == nil && refusal.Code != "" {
		return nil, fmt.Errorf("request tunnel from server: %w", &refusal)
	}
	return nil, fmt.Errorf("request tunnel from server: it answers %s", response.Status)
}

// start serves the tunnel in the background until it ends or ctx does.
func (l *link) start(ctx context.Context, t *Tunnel) {
	if !t.work.begin() {
		_ = l.Close()
		t.live.remove(l.server)
		l.err = errClosed
		close(l.ended)
		return
	}
	go func() {
		defer t.work.end()
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		server := &http2.Server{
			MaxConcurrentStreams:         joinapi.TunnelStreams,
			MaxUploadBufferPerStream:     joinapi.TunnelStreamWindow,
			MaxUploadBufferPerConnection: joinapi.TunnelWindow,
			ReadIdleTimeout:              t.config.PingAfter,
			PingTimeout:                  t.config.PingTimeout,
		}
		server.ServeConn(l, &http2.ServeConnOpts{
			Context: ctx, Handler: http.HandlerFunc(t.serveStream), BaseConfig: &http.Server{ErrorLog: quiet},
		})
		stop()
		_ = l.Close()
		l.mu.Lock()
		l.err = l.cause
		l.mu.Unlock()
		t.live.remove(l.server)
		close(l.ended)
	}()
}
