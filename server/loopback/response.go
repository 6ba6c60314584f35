package loopback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxBuffered is how many bytes of a response may wait for a slow reader
// before the handler's writes block, as a connection's window would.
const maxBuffered = 256 << 10

// responseWriter is the handler's side of a response. The API server's filters
// ask for http.Flusher and, through http.ResponseController, for deadlines.
type responseWriter struct {
	header  http.Header
	body    *stream
	once    sync.Once
	started chan struct{}
	// status and sent are written before started is closed and not after.
	status int
	sent   http.Header
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(status int) {
	if status >= 100 && status < 200 {
		return
	}
	w.start(status)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.start(http.StatusOK)
	return w.body.write(p)
}

func (w *responseWriter) Flush() { w.start(http.StatusOK) }

// CloseNotify exists because upstream's wrappers pass http.Flusher on only for a
// writer that has this, too (responsewriter.WrapForHTTP1Or2). A client that goes
// away is told by the request's context.
func (w *responseWriter) CloseNotify() <-chan bool { return make(chan bool) }

// SetReadDeadline and SetWriteDeadline exist for http.ResponseController; there
// is no connection that could hang, so a deadline has nothing to guard.
func (w *responseWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *responseWriter) SetWriteDeadline(time.Time) error { return nil }

func (w *responseWriter) start(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.started)
	})
}

// stream is a pipe with a bounded buffer.
type stream struct {
	cancel context.CancelFunc

	// mu guards what follows; cond is signalled at every change of it.
	mu       sync.Mutex
	cond     sync.Cond
	buffer   bytes.Buffer
	finished bool
	err      error // what Read returns once the buffer is empty
	closed   bool  // the reader has gone
}

var errReaderGone = errors.New("client closed the response")

func newStream(cancel context.CancelFunc) *stream {
	s := &stream{cancel: cancel}
	s.cond.L = &s.mu
	return s
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.buffer.Len() >= maxBuffered && !s.closed {
		s.cond.Wait()
	}
	if s.closed {
		return 0, errReaderGone
	}
	n, err := s.buffer.Write(p)
	s.cond.Broadcast()
	return n, err
}

func (s *stream) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished, s.err = true, err
	s.cond.Broadcast()
}

// Read implements io.Reader for the client.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.buffer.Len() == 0 {
		if s.closed {
			return 0, http.ErrBodyReadAfterClose
		}
		if s.finished {
			return 0, s.err
		}
		s.cond.Wait()
	}
	n, err := s.buffer.Read(p)
	if s.buffer.Len() == 0 && s.buffer.Cap() > 4<<10 {
		// A watch stays open for hours: do not keep the room of its largest event.
		s.buffer = bytes.Buffer{}
	}
	s.cond.Broadcast()
	return n, err
}

// Close tells the handler that nobody reads any more.
func (s *stream) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
	return nil
}
