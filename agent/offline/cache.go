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
)

// Link is how the cache hears whether a server answers.
type Link interface {
	// Up reports whether one does.
	Up() bool
	// Online returns a channel that is closed while one does.
	Online() <-chan struct{}
}

// Config is what a [Cache] is made of.
type Config struct {
	// Dir is where answers are kept.
	Dir string
	// Next asks a server.
	Next http.RoundTripper
	// Link knows whether one answers.
	Link Link
	// Patience is how long a server may take to answer what was kept by an earlier
	// process; zero means 5 s.
	Patience time.Duration
	// Logger receives what goes wrong; nil means silence.
	Logger *zap.Logger
}

// Cache is a round tripper that remembers. Make it with [New]; changes are kept
// while [Cache.Run] runs.
type Cache struct {
	config Config
	log    *zap.Logger
	began  time.Time

	mu sync.Mutex // guards the fields below
	// entries has one entry a key that is watched or has a file. sweep removes the rest.
	entries map[string]*entry
	asked   uint64        // number of the last request
	wake    chan struct{} // has room for one: an entry became due
}

// entry is what is known of a key beside its file.
type entry struct {
	// writing is held while the file is written, and taken before mu. Several
	// clients ask for the same: what was asked for first must not replace what was
	// asked for later, so each request has a number, and written is that of the file.
	writing sync.Mutex
	written uint64

	// sum is that of the answer in the file; zero if this process wrote none.
	sum digest
	// nodes are the digests of the nodes in a list of such, by name.
	nodes map[string]digest
	// spared is set once the kept answer was given although a server is there.
	spared bool
	// used is when somebody last asked; watches counts those who still do.
	used    time.Time
	watches int
	// due is when the list has to be read again; zero if it is as it was. It is
	// not before earliest, which leaves the pace to others; paid is when the reads
	// so far would have been made at the pace of one in every.
	due, earliest, paid time.Time
	// again asks for the list.
	again *http.Request
}

var _ http.RoundTripper = (*Cache)(nil)

// patience is the default of [Config.Patience].
const patience = 5 * time.Second

// New makes the folder and returns a cache on it.
func New(c Config) (*Cache, error) {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Patience == 0 {
		c.Patience = patience
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of what the cluster said: %w", err)
	}
	return &Cache{config: c, log: c.Logger, began: time.Now(), entries: map[string]*entry{}, wake: make(chan struct{}, 1)}, nil
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
		// A list in the form of a watch could not be kept: the asker lists instead.
		return answer(r, http.StatusMethodNotAllowed, "text/plain", io.NopCloser(bytes.NewReader(nil))), nil
	}
	if k == watch {
		return c.watch(r, key, p)
	}
	if !c.config.Link.Up() {
		if kept := c.recall(r, key); kept != nil {
			return kept, nil
		}
	}
	number := c.number()
	response, data, err := c.ask(r, k, key)
	if err != nil {
		if !c.config.Link.Up() {
			if kept := c.recall(r, key); kept != nil {
				return kept, nil
			}
		}
		return nil, err
	}
	q := r.URL.Query()
	switch {
	case data == nil:
		// It is what was kept.
	case response.StatusCode/100 != 2:
		if response.StatusCode == http.StatusNotFound && k == get {
			c.forget(key, number)
		}
	case k == list && (q.Has("continue") || q.Has("limit") && q.Get("resourceVersion") != "0"):
		// A part of a list is none; the watch that follows has it read whole.
	default:
		c.keep(key, number, record{Key: key, Status: response.StatusCode, ContentType: response.Header.Get("Content-Type")}, data)
	}
	return response, nil
}

// number returns that of a request which is about to be made.
func (c *Cache) number() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.asked
}

// ask asks a server and returns its answer, read. One that is there and yet does
// not answer, as it starts or is ill, must not keep a node that starts from what
// it knows: then the answer is what was kept, without data, once for each key.
func (c *Cache) ask(r *http.Request, k kind, key string) (*http.Response, []byte, error) {
	spare, asked := false, r
	if k == list || k == get {
		c.mu.Lock()
		e := c.entries[key]
		spare = e == nil || e.sum == digest{} && !e.spared
		c.mu.Unlock()
		spare = spare && c.kept(key)
	}
	if spare {
		ctx, cancel := context.WithTimeout(r.Context(), c.config.Patience)
		defer cancel()
		asked = r.WithContext(ctx)
	}
	response, data, err := fetch(c.config.Next, asked)
	if spare && r.Context().Err() == nil && (err != nil || response.StatusCode >= http.StatusInternalServerError) {
		if kept := c.recall(r, key); kept != nil {
			c.mu.Lock()
			c.entry(key).spared = true
			c.mu.Unlock()
			return kept, nil, nil
		}
	}
	return response, data, err
}

// fetch asks and reads the answer. data is never nil then.
func fetch(next http.RoundTripper, r *http.Request) (response *http.Response, data []byte, err error) {
	if response, err = next.RoundTrip(r); err != nil {
		return nil, nil, err
	}
	data, err = io.ReadAll(response.Body)
	if closeErr := response.Body.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read answer to %s: %w", r.URL.Path, err)
	}
	response.Body = io.NopCloser(bytes.NewReader(data))
	return response, data, nil
}

// watch passes a watch on and follows it. While no server answers it is an empty
// one that ends when one does again, so that its asker goes on at once.
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
	e.again = listOf(r)
	unknown := e.sum == digest{}
	c.mu.Unlock()
	if unknown {
		c.changed(key, p, p.came)
	}
	contentType, nodes := response.Header.Get("Content-Type"), ofNodes(key)
	heard := func(event []byte) {
		switch {
		case nodes && !c.nodeChanged(key, event, isBinary(contentType)):
		case modified(event):
			c.changed(key, p, p.modified)
		default:
			c.changed(key, p, p.came)
		}
	}
	response.Body = newEvents(response.Body, contentType, nodes, heard, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		e.watches--
		e.used = time.Now()
	})
	return response, nil
}

func (c *Cache) emptyWatch(r *http.Request) *http.Response {
	return answer(r, http.StatusOK, "application/json;stream=watch", &silence{until: c.config.Link.Online(), ctx: r.Context(), closed: make(chan struct{})})
}

// silence is a body without content that ends with its channel.
type silence struct {
	until  <-chan struct{}
	ctx    context.Context // the request's own, as in http.Request
	once   sync.Once
	closed chan struct{}
}

func (s *silence) Read([]byte) (int, error) {
	select {
	case <-s.until:
	case <-s.closed:
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	return 0, io.EOF
}

func (s *silence) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func answer(r *http.Request, status int, contentType string, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: http.Header{"Content-Type": {contentType}}, Body: body, ContentLength: -1, Request: r,
	}
}

// listOf is the request for the whole list a watch follows.
func listOf(r *http.Request) *http.Request {
	u := *r.URL
	q := u.Query()
	for _, name := range []string{"watch", "allowWatchBookmarks", "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "timeout", "sendInitialEvents", "limit"} {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	return &http.Request{Method: http.MethodGet, URL: &u, Host: r.Host, Header: r.Header.Clone(), Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor}
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

// changed has a list read again after gather, if its pace allows.
func (c *Cache) changed(key string, p pace, gather time.Duration) {
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
	at := now.Add(gather)
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

// Run keeps changed lists and removes what nobody asks for, until ctx ends. What
// is due then is kept before it returns, so the way to the server has to outlive it.
func (c *Cache) Run(ctx context.Context) error {
	swept := time.Now()
	for {
		// Not with the timer below, which never fires while entries become due all the time.
		if now := time.Now(); now.Sub(swept) >= idleLife {
			c.sweep(now)
			swept = now
		}
		// Nothing can be read again while no server answers, and nothing is removed.
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

// finishTimeout bounds what is kept at the end.
const finishTimeout = 2 * time.Second

// finish keeps the changes that still wait for others.
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

// readDue reads the lists again whose time has come by now, and returns when it
// is to be called next.
func (c *Cache) readDue(ctx context.Context, now time.Time) time.Time {
	next := now.Add(idleLife)
	due := map[string]*http.Request{}
	c.mu.Lock()
	for key, e := range c.entries {
		if e.due.IsZero() || e.again == nil {
			continue
		}
		if e.due.After(now) {
			if e.due.Before(next) {
				next = e.due
			}
			continue
		}
		due[key] = e.again
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

// errStatus says that a list was refused.
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
	c.keep(key, number, record{Key: key, Status: response.StatusCode, ContentType: response.Header.Get("Content-Type")}, data)
	return nil
}
