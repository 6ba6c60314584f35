package netproxy

import (
	"context"
	"net"
	"net/http"
	"testing"

	"go.uber.org/zap"
)

func TestProxy_ServeHTTP_WaitsForRequests(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-release
	})
	ctx, cancel := context.WithCancel(t.Context())
	served, answered := make(chan error, 1), make(chan struct{})
	go func() { served <- (&Proxy{log: zap.NewNop()}).serveHTTP(ctx, "test", address, handler) }()
	go func() {
		defer close(answered)
		for {
			resp, err := http.Get("http://" + address)
			if err == nil {
				resp.Body.Close()
				return
			}
			select {
			case <-entered:
				return
			default:
			}
		}
	}()
	<-entered
	cancel()
	// New connections are refused once the shutdown has begun.
	for {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		conn.Close()
	}
	select {
	case err := <-served:
		t.Errorf("it ended before a request was answered: %v", err)
	default:
	}
	close(release)
	<-answered
	if err := <-served; err != nil {
		t.Error(err)
	}
}
