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

// maxAnswer bounds what is read of a server's refusal.
const maxAnswer = 64 << 10

// errEnded is why a tunnel is no more when nothing else is known.
var errEnded = errors.New("the connection ended")

// alreadyError says that the server has a tunnel of this node already.
type alreadyError struct{ server string }

func (e *alreadyError) Error() string { return "server has a tunnel of this node: " + e.server }

// link is a connection that has become a tunnel.
type link struct {
	net.Conn
	// reader may hold bytes that came with the answer.
	reader *bufio.Reader
	// server is what the server's process calls itself.
	server string
	// ended is closed when the tunnel is no more; err is set before.
	ended chan struct{}
	err   error

	mu    sync.Mutex // guards fault
	fault error      // the first error of the connection
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.reader.Read(p)
	l.note(err)
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	l.note(err)
	return n, err
}

// Close closes the socket below TLS: a word of farewell would wait for a peer
// that may be gone.
func (l *link) Close() error {
	l.note(errEnded)
	if t, ok := l.Conn.(*tls.Conn); ok {
		return t.NetConn().Close()
	}
	return l.Conn.Close()
}

func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		l.fault = err
	}
}

// connect opens a tunnel to the server at address.
func (t *Tunnel) connect(ctx context.Context, address string, have []string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	config := t.config.TLS().Clone()
	// HTTP/2 cannot be left for another protocol.
	config.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, config)
	l, err := upgrade(ctx, conn, config.ServerName, have)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return l, nil
}

// upgrade asks the server to switch to the tunnel's protocol.
func upgrade(ctx context.Context, conn *tls.Conn, host string, have []string) (*link, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("make sure of server: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+joinapi.PathTunnel, nil)
	if err != nil {
		return nil, fmt.Errorf("make request for tunnel: %w", err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", joinapi.TunnelProtocol)
	if len(have) > 0 {
		request.Header.Set(joinapi.HeaderTunnelHave, strings.Join(have, ","))
	}
	if err := request.Write(conn); err != nil {
		return nil, fmt.Errorf("ask server for tunnel: %w", err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, fmt.Errorf("ask server for tunnel: %w", err)
	}
	server := response.Header.Get(joinapi.HeaderTunnelServer)
	switch {
	case response.StatusCode == http.StatusSwitchingProtocols && server != "" && response.Header.Get("Upgrade") == joinapi.TunnelProtocol:
		return &link{Conn: conn, reader: reader, server: server, ended: make(chan struct{})}, nil
	case response.StatusCode == http.StatusConflict && server != "":
		return nil, errors.Join(&alreadyError{server}, response.Body.Close())
	}
	defer response.Body.Close()
	var refusal joinapi.Error
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err == nil && json.Unmarshal(data, &refusal) == nil && refusal.Code != "" {
		return nil, fmt.Errorf("ask server for tunnel: %w", &refusal)
	}
	return nil, fmt.Errorf("ask server for tunnel: it answers %s", response.Status)
}

// start serves the tunnel in the background until it ends or ctx does.
func (l *link) start(ctx context.Context, t *Tunnel) {
	if !t.work.begin() {
		_ = l.Close()
		t.live.remove(l.server)
		l.err = errEnded
		close(l.ended)
		return
	}
	go func() {
		defer t.work.end()
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		server := &http2.Server{
			MaxConcurrentStreams: joinapi.TunnelStreams, MaxUploadBufferPerStream: joinapi.TunnelStreamWindow, MaxUploadBufferPerConnection: joinapi.TunnelWindow,
			ReadIdleTimeout: t.config.PingAfter, PingTimeout: t.config.PingTimeout,
		}
		server.ServeConn(l, &http2.ServeConnOpts{
			Context: ctx, Handler: http.HandlerFunc(t.serveStream), BaseConfig: &http.Server{ErrorLog: quiet},
		})
		stop()
		_ = l.Close()
		l.mu.Lock()
		l.err = l.fault
		l.mu.Unlock()
		t.live.remove(l.server)
		close(l.ended)
	}()
}
