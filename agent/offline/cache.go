package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

// Link tracks whether a server answers.
type Link interface {
	// Up reports whether a server answers.
	Up() bool
	// Online returns a channel that is closed while a server answers.
	Online() <-chan struct{}
}

// Config configures a [Cache].
type Config struct {
	// Dir is the folder of the cached responses.
	Dir string
	// Next sends requests to a server.
	Next http.RoundTripper
	// Link tracks whether a server answers.
	Link Link
	// Patience is how long a server may take to answer a request whose response an earlier process
	// has cached; zero means 5 s.
	Patience time.Duration
	// Logger may be nil for no log.
	Logger *zap.Logger
}

// Cache is a round tripper that caches responses on disk. Make it with [New]; lists are updated
// while [Cache.Run] runs.
type Cache struct {
	config Config
	log    *zap.Logger
	began  time.Time

	mu sync.Mutex // guards the fields below
	// entries has one entry a key that is watched or has a file. sweep removes the rest.
	entries  map[string]*entry
	requests uint64        // number of the last request
	wake     chan struct{} // capacity 1: an entry became due
}

// entry is the state of a key beside its file.
type entry struct {
	// writing is held while the file is written, and locked before mu. Several clients request the
	// same key, and the response to an earlier request must not replace that to a later one. So
	// requests are numbered, and written is the number of the file's.
	writing sync.Mutex
	written uint64

	// sum is the digest of the response in the file; zero if this process wrote none.
	sum digest
	// nodes are the digests of the nodes in a list of nodes, by name.
	nodes map[string]digest
	// fellBack is set once the cached response was returned although the link is up.
	fellBack bool
	// used is when a client last used the key; watches counts the open watches.
	used    time.Time
	watches int
	// due is when to read the list again; zero if it has not changed. It is never before earliest,
	// which enforces the pace: paid is when the reads so far would have been made at an even pace.
	due, earliest, paid time.Time
	// reread requests the list.
	reread *http.Request
}

var _ http.RoundTripper = (*Cache)(nil)

// patience is the default of [Config.Patience].
const patience = 5 * time.Second

// New creates the folder and returns a cache in it.
func New(c Config) (*Cache, error) {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Patience == 0 {
		c.Patience = patience
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create folder of cached responses: %w", err)
	}
	return &Cache{
		config:  c,
		log:     c.Logger,
		began:   time.Now(),
		entries: map[string]*entry{},
		wake:    make(chan struct{}, 1),
	}, nil
}

// RoundTrip implements http.RoundTripper.
func (c *Cache) RoundTrip(r *http.Request) (*http.Response, error) {
	k, key, p, err := classify(r)
	if err != nil {
		return nil, err
	}
	if k == other {
		return c.config.Next.RoundTrip(r)
	}
	if k == watch && isTrue(r.URL.Query().Get("sendInitialEvents")) {
		// A list sent as a watch could not be cached. After this response, clients list instead.
		return newResponse(r, http.StatusMethodNotAllowed, "text/plain", io.NopCloser(bytes.NewReader(nil))), nil
	}
	if k == watch {
		return c.watch(r, key, p)
	}
	if !c.config.Link.Up() {
		if cached := c.load(r, key); cached != nil {
			return cached, nil
		}
	}
	number := c.number()
	response, data, err := c.request(r, k, key)
	if err != nil {
		if !c.config.Link.Up() {
			if cached := c.load(r, key); cached != nil {
				return cached, nil
			}
		}
		return nil, err
	}
	q := r.URL.Query()
	switch {
	case data == nil:
		// It is the cached response.
	case response.StatusCode/100 != 2:
		if k == get && notFound(data) {
			c.forget(key, number)
		}
	case k == list && (q.Has("continue") || q.Has("limit") && q.Get("resourceVersion") != "0"):
		// Part of a list is of no use; the watch that follows makes it be read in full.
	default:
		c.store(key, number,
			record{Key: key, Status: response.StatusCode, ContentType: response.Header.Get("Content-Type")}, data)
	}
	return response, nil
}

// notFound reports whether the body of a response says that the requested object does not exist.
// The status code 404 alone does not: a server has it for every path it does not serve yet.
func notFound(data []byte) bool {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	status, ok := obj.(*metav1.Status)
	return err == nil && ok && status.Reason == metav1.StatusReasonNotFound
}

// number returns the number of the next request.
func (c *Cache) number() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	return c.requests
}

// request sends a request to a server and reads the response. A server that accepts connections and
// does not answer, because it starts or is broken, must not block the start of a node that has
// everything cached. In that case the result is the cached response, with nil data, once for each
// key.
func (c *Cache) request(r *http.Request, k kind, key string) (*http.Response, []byte, error) {
	fallback, limited := false, r
	if k == list || k == get {
		c.mu.Lock()
		e := c.entries[key]
		fallback = e == nil || e.sum == digest{} && !e.fellBack
		c.mu.Unlock()
		fallback = fallback && c.has(key)
	}
	if fallback {
		ctx, cancel := context.WithTimeout(r.Context(), c.config.Patience)
		defer cancel()
		limited = r.WithContext(ctx)
	}
	response, data, err := fetch(c.config.Next, limited)
	if fallback && r.Context().Err() == nil && (err != nil || response.StatusCode >= http.StatusInternalServerError) {
		if cached := c.load(r, key); cached != nil {
			c.mu.Lock()
			c.entry(key).fellBack = true
			c.mu.Unlock()
			return cached, nil, nil
		}
	}
	return response, data, err
}

// fetch sends a request and reads the response. Without an error, data is not nil.
func fetch(next http.RoundTripper, r *http.Request) (response *http.Response, data []byte, err error) {
	if response, err = next.RoundTrip(r); err != nil {
		return nil, nil, err
	}
	data, err = io.ReadAll(response.Body)
	if closeErr := response.Body.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read response to %s: %w", r.URL.Path, err)
	}
	response.Body = io.NopCloser(bytes.NewReader(data))
	return response, data, nil
}

// watch forwards a watch and follows it. While no server answers, it returns a watch without events
// that ends when a server is back, so that the client then resumes at once.
func (c *Cache) watch(r *http.Request, key string, p pace) (*http.Response, error) {
	if !c.config.Link.Up() {
		return c.emptyWatch(r), nil
	}
	response, err := c.config.Next.RoundTrip(r)
	if err != nil && !c.config.Link.Up() && r.Context().Err() == nil {
		return c.emptyWatch(r), nil
	}
	if err != nil || response.StatusCode != http.StatusOK {
		return response, err
	}
	c.mu.Lock()
	e := c.entry(key)
	e.watches++
	e.reread = listOf(r)
	unknown := e.sum == digest{}
	c.mu.Unlock()
	if unknown {
		c.changed(key, p, p.added)
	}
	contentType, nodes := response.Header.Get("Content-Type"), ofNodes(key)
	onEvent := func(event []byte) {
		switch {
		case nodes && !c.nodeChanged(key, event, isBinary(contentType)):
		case modified(event):
			c.changed(key, p, p.modified)
		default:
			c.changed(key, p, p.added)
		}
	}
	response.Body = newEvents(response.Body, contentType, nodes, onEvent, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.watches--
		e.used = time.Now()
	})
	return response, nil
}

func (c *Cache) emptyWatch(r *http.Request) *http.Response {
	return newResponse(r, http.StatusOK, "application/json;stream=watch",
		&emptyBody{until: c.config.Link.Online(), ctx: r.Context(), closed: make(chan struct{})})
}

// emptyBody is a body without content that ends with its channel.
type emptyBody struct {
	until  <-chan struct{}
	ctx    context.Context // the request's own, as in http.Request
	once   sync.Once
	closed chan struct{}
}

func (b *emptyBody) Read([]byte) (int, error) {
	select {
	case <-b.until:
	case <-b.closed:
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
	return 0, io.EOF
}

func (b *emptyBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

func newResponse(r *http.Request, status int, contentType string, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status:        fmt.Sprintf("%d %s", status, http.StatusText(status)),
		StatusCode:    status,
		Proto:         "HTTP/2.0",
		ProtoMajor:    2,
		Header:        http.Header{"Content-Type": {contentType}},
		Body:          body,
		ContentLength: -1,
		Request:       r,
	}
}

// listOf returns the request for the full list that a watch follows.
func listOf(r *http.Request) *http.Request {
	u := *r.URL
	q := u.Query()
	for _, name := range []string{"watch", "allowWatchBookmarks", "resourceVersion", "resourceVersionMatch",
		"timeoutSeconds", "timeout", "sendInitialEvents", "limit"} {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	return &http.Request{
		Method:     http.MethodGet,
		URL:        &u,
		Host:       r.Host,
		Header:     r.Header.Clone(),
		Proto:      r.Proto,
		ProtoMajor: r.ProtoMajor,
		ProtoMinor: r.ProtoMinor,
	}
}

// entry returns the entry of a key. The caller holds mu.
func (c *Cache) entry(key string) *entry {
	e := c.entries[key]
	if e == nil {
		e = &entry{}
		c.entries[key] = e
	}
	e.used = time.Now()
	return e
}

// changed schedules a list to be read again after batch, or later if its pace demands that.
func (c *Cache) changed(key string, p pace, batch time.Duration) {
	now := time.Now()
	c.mu.Lock()
	e := c.entry(key)
	if e.due.IsZero() {
		if e.paid.Before(now) {
			e.paid = now
		}
		e.paid = e.paid.Add(p.every)
		e.earliest = e.paid.Add(-time.Duration(p.burst) * p.every)
	}
	at := now.Add(batch)
	if at.Before(e.earliest) {
		at = e.earliest
	}
	if e.due.IsZero() || at.Before(e.due) {
		e.due = at
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run reads changed lists again and removes unused ones, until ctx ends. It makes the pending reads
// before it returns, so the connection to the server must outlive it.
func (c *Cache) Run(ctx context.Context) error {
	swept := time.Now()
	for {
		// Not with the timer below, which never fires while entries become due all the time.
		if now := time.Now(); now.Sub(swept) >= idleLife {
			c.sweep(now)
			swept = now
		}
		// While no server answers, nothing can be read again, and nothing is removed.
		select {
		case <-ctx.Done():
			c.finish(ctx)
			return nil
		case <-c.config.Link.Online():
		}
		next := c.readDue(ctx, time.Now())
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			c.finish(ctx)
			return nil
		case <-c.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// finishTimeout bounds the reads at the end.
const finishTimeout = 2 * time.Second

// finish makes the reads that are still pending.
func (c *Cache) finish(ctx context.Context) {
	if !c.config.Link.Up() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	c.readDue(ctx, time.Now().Add(idleLife))
}

// rereadPause is the pause after a list could not be read again.
const rereadPause = 10 * time.Second

// readDue reads the lists that are due at now, and returns when to call it next.
func (c *Cache) readDue(ctx context.Context, now time.Time) time.Time {
	next := now.Add(idleLife)
	due := map[string]*http.Request{}
	c.mu.Lock()
	for key, e := range c.entries {
		if e.due.IsZero() || e.reread == nil {
			continue
		}
		if e.due.After(now) {
			if e.due.Before(next) {
				next = e.due
			}
			continue
		}
		due[key] = e.reread
		e.due = time.Time{}
	}
	c.mu.Unlock()
	for key, request := range due {
		err := ctx.Err()
		if err == nil {
			err = c.read(ctx, key, request)
		}
		if err == nil {
			continue
		}
		c.log.Debug("list not read again", zap.String("list", key), zap.Error(err))
		at := time.Now().Add(rereadPause)
		c.mu.Lock()
		if e := c.entry(key); e.due.IsZero() || at.Before(e.due) {
			e.due = at
		}
		c.mu.Unlock()
		if at.Before(next) {
			next = at
		}
	}
	return next
}

// readTimeout bounds one list.
const readTimeout = 30 * time.Second

// errStatus means that a server refused a list.
var errStatus = errors.New("server refused the list")

func (c *Cache) read(ctx context.Context, key string, request *http.Request) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	number := c.number()
	response, data, err := fetch(c.config.Next, request.Clone(ctx))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s", errStatus, response.Status)
	}
	c.store(key, number,
		record{Key: key, Status: response.StatusCode, ContentType: response.Header.Get("Content-Type")}, data)
	return nil
}
