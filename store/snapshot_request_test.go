package store

import (
	"context"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// brokeListener fails like one of a process without file descriptors.
type brokeListener struct {
	net.Listener
	accepts int
	closed  bool
}

func (l *brokeListener) Accept() (net.Conn, error) {
	l.accepts++
	return nil, syscall.EMFILE
}

func (l *brokeListener) Close() error {
	l.closed = true
	return nil
}

func TestSnapshots_ServeListener_AcceptFails_TriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		s := &snapshots{log: zap.New(core)}
		ctx, cancel := context.WithCancel(t.Context())
		l := &brokeListener{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.serveListener(ctx, l)
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case <-done:
			t.Error("the store gave up")
		default:
		}
		if l.accepts < 10 || l.accepts > 30 || logs.Len() != 1 {
			t.Errorf("in a minute it tried %d times and logged %d lines, want some 20 and one", l.accepts, logs.Len())
		}
		cancel()
		<-done
		synctest.Wait()
		if !l.closed {
			t.Error("the listener is open")
		}
	})
}
