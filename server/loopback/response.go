package loopback

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxBuffered is how many bytes of a response may wait for a slow reader before the handler's
// writes block, as they would once a connection's window is full.
const maxBuffered = 256 << 10

// responseWriter is the handler's side of a response. The API server's filters ask for http.Flusher
// and, through http.ResponseController, for deadlines. There is no Hijack: as with HTTP/2, no
// connection belongs to one request.
type responseWriter struct {
	header  http.Header
	body    *stream
	once    sync.Once
	started chan struct{}
	// status, sent and err are written before started is closed and not after.
	status int
	sent   http.Header
	err    error
}

func (w *responseWriter) Header() http.Header { return w.header }

// WriteHeader ignores informational responses, but for the one that is final.
func (w *responseWriter) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		return
	}
	w.start(status)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.start(http.StatusOK)
	return w.body.write(p)
}

func (w *responseWriter) Flush() { w.start(http.StatusOK) }

// CloseNotify exists because upstream's wrappers pass http.Flusher on only for a writer that also
// has this (responsewriter.WrapForHTTP1Or2). The request's context ends when the client goes away.
func (w *responseWriter) CloseNotify() <-chan bool { return make(chan bool) }

// SetReadDeadline and SetWriteDeadline exist for http.ResponseController. There is no connection
// that could hang, so a deadline has nothing to guard.
func (w *responseWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *responseWriter) SetWriteDeadline(time.Time) error { return nil }

// start sends the header, unless it was sent before.
func (w *responseWriter) start(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.started)
	})
}

// fail ends the request without a response, unless the header was sent.
func (w *responseWriter) fail(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.started)
	})
}

// stream is a pipe with a bounded buffer, from the handler to the client.
type stream struct {
	// cancel ends the request.
	cancel func()

	// mu guards what follows; cond is signalled at every change of it.
	mu       sync.Mutex
	cond     sync.Cond
	buffer   bytes.Buffer
	finished bool
	err      error // what Read returns once the buffer is empty; the first one counts
	closed   bool  // the reader has gone
}

var errReaderGone = errors.New("client closed the response")

func newStream(cancel func()) *stream {
	s := &stream{cancel: cancel}
	s.cond.L = &s.mu
	return s
}

func (s *stream) write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.buffer.Len() >= maxBuffered && !s.closed && !s.finished {
		s.cond.Wait()
	}
	if s.closed {
		return 0, errReaderGone
	}
	if s.finished {
		return 0, s.err
	}
	n, err := s.buffer.Write(p)
	s.cond.Broadcast()
	return n, err
}

// finish ends the stream: writes fail from now on, and Read returns err, or io.EOF for nil, after
// what was written. Only the first call counts, or a response that was cut short would look whole
// once its handler returns.
func (s *stream) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
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
		// A watch stays open for hours: do not keep the memory its largest event took.
		s.buffer = bytes.Buffer{}
	}
	s.cond.Broadcast()
	return n, err
}

// Close ends the request: nobody reads the response any more.
func (s *stream) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.buffer = bytes.Buffer{}
	s.cond.Broadcast()
	return nil
}
