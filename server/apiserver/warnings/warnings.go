package warnings

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"sync"

	"k8s.io/apiserver/pkg/endpoints/responsewriter"
	"k8s.io/apiserver/pkg/warning"
)

// Wrap makes a request's header map safe after the request has ended. It goes directly in front of
// the API, behind upstream's filters.
//
// Upstream runs a create, update, patch or delete in a goroutine of its own
// (finisher.FinishRequest). When the client goes away or time is up, the handler answers with an
// error, while that goroutine goes on and may add a warning, such as those of Pod Security.
// Upstream's recorder adds it to the header map that the handler fills at the same time. Its lock
// is no help: the handler does not take it.
//
// Here warnings wait in a list, whoever adds them. Only the handler's own calls hand them to
// upstream's recorder, just before they send the header, so only its goroutine touches the map. A
// warning that comes later is dropped; the header it belongs to is sent.
func Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answer{ResponseWriter: w, recorder: r.Context()}
		next.ServeHTTP(responsewriter.WrapForHTTP1Or2(a), r.WithContext(warning.WithWarningRecorder(r.Context(), a)))
		// The handler may leave it to the server to send an empty answer.
		a.record()
		a.end()
	})
}

// answer is the response's writer and the request's recorder of warnings.
type answer struct {
	http.ResponseWriter
	// recorder is the context that leads to upstream's recorder.
	recorder context.Context

	// mu guards what follows. It is not held while upstream's recorder is called.
	mu      sync.Mutex
	waiting []text
	seen    map[text]struct{}
	ended   bool
}

// text is a warning as warning.AddWarning takes it.
type text struct{ agent, text string }

var (
	_ responsewriter.UserProvidedDecorator = (*answer)(nil)
	_ warning.Recorder                     = (*answer)(nil)
)

// AddWarning implements warning.Recorder, for any goroutine at any time.
func (a *answer) AddWarning(agent, message string) {
	t := text{agent, message}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.seen[t]; ok || a.ended {
		return
	}
	if a.seen == nil {
		a.seen = map[text]struct{}{}
	}
	a.seen[t] = struct{}{}
	a.waiting = append(a.waiting, t)
}

// record hands the warnings so far to upstream's recorder, which adds them to the header.
func (a *answer) record() {
	a.mu.Lock()
	waiting := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	for _, t := range waiting {
		warning.AddWarning(a.recorder, t.agent, t.text)
	}
}

// end lets go of what a goroutine that was left behind would keep.
func (a *answer) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended, a.waiting, a.seen = true, nil, nil
}

// Unwrap is for http.ResponseController and upstream's wrappers.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.record()
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.record()
	return a.ResponseWriter.Write(p)
}

// Flush implements http.Flusher; it sends the header if nothing has.
func (a *answer) Flush() {
	a.record()
	if flusher, ok := a.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

// Hijack implements http.Hijacker: what the handler then writes to the connection may begin with
// the header.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hijacker, ok := a.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	a.record()
	return hijacker.Hijack()
}
