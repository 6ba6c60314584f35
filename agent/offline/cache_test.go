package offline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// world is an API server that can go away, and its link.
type world struct {
	*httptest.Server
	mu      sync.Mutex // guards the fields below
	up      bool
	online  chan struct{}
	pods    []string
	kind    string // of the list
	events  chan string
	tokens  int
	watched chan struct{}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		up:      true,
		online:  make(chan struct{}),
		events:  make(chan string),
		watched: make(chan struct{}, 10),
		pods:    []string{"a"},
		kind:    "PodList",
	}
	close(w.online)
	w.Server = httptest.NewServer(w)
	t.Cleanup(func() { w.CloseClientConnections(); w.Server.Close() })
	return w
}

func (w *world) Up() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.up }

func (w *world) Online() <-chan struct{} { w.mu.Lock(); defer w.mu.Unlock(); return w.online }

func (w *world) set(up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.up = up; up {
		close(w.online)
	} else {
		w.online = make(chan struct{})
		w.CloseClientConnections()
	}
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if !w.Up() {
		return nil, errors.New("nobody answers")
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (w *world) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	out.Header().Set("Content-Type", "application/json")
	switch {
	case r.Method == http.MethodPost:
		w.mu.Lock()
		w.tokens++
		n := w.tokens
		w.mu.Unlock()
		out.WriteHeader(http.StatusCreated)
		fmt.Fprintf(out,
			`{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","status":{"token":"token-%d"}}`, n)
	case r.URL.Query().Get("watch") != "":
		out.WriteHeader(http.StatusOK)
		out.(http.Flusher).Flush()
		w.watched <- struct{}{}
		for {
			select {
			case <-r.Context().Done():
				return
			case e := <-w.events:
				fmt.Fprintln(out, e)
				out.(http.Flusher).Flush()
			}
		}
	default:
		w.mu.Lock()
		defer w.mu.Unlock()
		var items []string
		for _, p := range w.pods {
			items = append(items, fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"default"}}`, p))
		}
		fmt.Fprintf(out, `{"kind":%q,"apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[%s]}`, w.kind,
			strings.Join(items, ","))
	}
}

func open(t *testing.T, dir string, w *world) *Cache {
	t.Helper()
	c, err := New(Config{Dir: dir, Next: w, Link: w})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func request(t *testing.T, c *Cache, method, url, body string) (int, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data), nil
}

const (
	podsKey    = "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1"
	podsOfNode = podsKey
)

func TestCache_RoundTrip_KeepsAnswers(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	c := open(t, dir, w)
	const tokenPath = "/api/v1/namespaces/default/serviceaccounts/default/token"
	for _, r := range [][3]string{{"GET", podsOfNode + "&resourceVersion=0&limit=500", ""},
		{"GET", "/api/v1/namespaces/default/secrets/s", ""}, {"POST", tokenPath, `{"x":1}`},
		{"GET", "/api/v1/nodes/n1", ""}} {
		if code, _, err := request(t, c, r[0], w.URL+r[1], r[2]); err != nil || code >= 300 {
			t.Fatalf("%s: %d, %v", r[1], code, err)
		}
	}
	w.set(false)
	// Like after a restart.
	c = open(t, dir, w)
	for _, row := range []struct {
		name, method, path, body string
		code                     int
		want                     string
	}{
		{"list with other parameters", "GET", podsOfNode + "&resourceVersion=7", "", 200, `"name":"a"`},
		{"object", "GET", "/api/v1/namespaces/default/secrets/s", "", 200, "PodList"},
		{"token of the same pod", "POST", tokenPath, `{"x":1}`, 201, "token-1"},
		{"token of another pod", "POST", tokenPath, `{"x":2}`, 0, ""},
		{"another node's pods", "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", "", 0, ""},
		{"object that is changed by its reader", "GET", "/api/v1/nodes/n1", "", 0, ""},
		{"write", "POST", "/api/v1/namespaces/default/pods", "{}", 0, ""},
		{"CSINode", "GET", "/apis/storage.k8s.io/v1/csinodes/n1", "", 0, ""},
	} {
		code, text, err := request(t, c, row.method, w.URL+row.path, row.body)
		if code != row.code || !strings.Contains(text, row.want) || (err != nil) != (row.code == 0) {
			t.Errorf("%s: %d %q %v, want %d with %q", row.name, code, text, err, row.code, row.want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want it for root alone", e.Name(), info.Mode(), err)
		}
	}
}

// An informer over the cache, like those of the kubelet and the service proxy, starts without a
// server and follows one that comes back.
func TestCache_Informer_StartsWithoutServer(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	start := func() cache.SharedIndexInformer {
		c := open(t, dir, w)
		client, err := kubernetes.NewForConfig(&rest.Config{Host: w.URL, Transport: c})
		if err != nil {
			t.Fatal(err)
		}
		factory := informers.NewSharedInformerFactory(client, 0)
		informer := factory.Core().V1().Pods().Informer()
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		t.Cleanup(func() { cancel(); factory.Shutdown() })
		wait, done := context.WithTimeout(t.Context(), 20*time.Second)
		defer done()
		if !cache.WaitForCacheSync(wait.Done(), informer.HasSynced) {
			t.Fatal("informer has not synced")
		}
		return informer
	}
	start()
	<-w.watched
	w.set(false)
	informer := start()
	if got := informer.GetStore().ListKeys(); len(got) != 1 || got[0] != "default/a" {
		t.Fatalf("without a server the informer knows %v", got)
	}
	added := make(chan string, 10)
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok {
			added <- p.Name
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if name := <-added; name != "a" {
		t.Fatalf("the first event is about %s", name)
	}
	w.set(true)
	for sent := false; !sent; {
		select {
		case <-w.watched:
			// There are two watches, and either may get the event.
		case w.events <- `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"b","namespace":"default","resourceVersion":"8"}}}`:
		case name := <-added:
			sent = name == "b"
		case <-t.Context().Done():
			t.Fatal("the watch did not come back")
		}
	}
}

func TestCache_Watch_StoresChanges(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	c := open(t, dir, w)
	if _, _, err := request(t, c, "GET", w.URL+podsOfNode, ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", w.URL+podsOfNode+"&watch=true&resourceVersion=7", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	w.mu.Lock()
	w.pods = []string{"a", "late"}
	w.mu.Unlock()
	w.events <- `{"type":"ADDED","object":{"metadata":{"name":"late"}}}`
	if _, err := response.Body.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	key := "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1"
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if data, err := os.ReadFile(c.path(key)); err == nil && strings.Contains(string(data), "late") {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatal("the change was not stored")
		}
	}
}

func TestEvents_BookmarksAreNoChange(t *testing.T) {
	object := strings.Repeat("x", 100)
	frame := func(text string) string { return fmt.Sprintf("\x00\x00\x00%c%s", len(text), text) }
	for _, row := range []struct {
		name, contentType, text string
		want, modified          int
	}{
		{"JSON", "application/json", `{"type":"ADDED","object":"` + object + `"}` + "\n" +
			`{"type":"BOOKMARK","object":"` + object + `"}` + "\n" + `{"type":"DELETED"}` + "\n", 2, 0},
		{"protobuf", "application/vnd.kubernetes.protobuf;stream=watch",
			frame("\n\x05ADDED"+object) + frame("\n\x08BOOKMARK"+object) + frame("\n\x07DELETED"), 2, 0},
		{"only bookmarks", "application/json", `{"type":"BOOKMARK"}` + "\n", 0, 0},
		{"JSON, modified", "application/json", `{"type":"MODIFIED","object":"` + object + `"}` + "\n" +
			`{"type":"ADDED","object":"` + object + `"}` + "\n", 2, 1},
		{"protobuf, modified", "application/vnd.kubernetes.protobuf;stream=watch",
			frame("\n\x08MODIFIED"+object) + frame("\n\x05ADDED"+object) + frame("\n\x08MODIFIED"), 3, 2},
	} {
		for _, size := range []int{1, 3, 1000} {
			events, changed := 0, 0
			e := newEvents(io.NopCloser(strings.NewReader(row.text)), row.contentType, false, func(event []byte) {
				events++
				if modified(event) {
					changed++
				}
			}, nil)
			if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{e}, make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if events != row.want || changed != row.modified {
				t.Errorf("%s read by %d bytes: %d events, %d of them of modified objects, want %d and %d", row.name,
					size, events, changed, row.want, row.modified)
			}
		}
	}
}

func TestEvents_Whole(t *testing.T) {
	object := strings.Repeat("x", 300)
	first, second := "\n\x05ADDED"+object+"BOOKMARK", "\n\x08MODIFIED"+object
	frame := func(text string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(text)))) + text }
	for _, row := range []struct{ name, contentType, text string }{
		{"lines", "application/json",
			strings.ReplaceAll(first, "\n", " ") + "\n" + strings.ReplaceAll(second, "\n", " ") + "\n"},
		{"frames", "application/vnd.kubernetes.protobuf;stream=watch",
			frame(first) + frame("\n\x08BOOKMARK"+object) + frame(second)},
	} {
		for _, size := range []int{1, 7, 5000} {
			var events []string
			e := newEvents(io.NopCloser(strings.NewReader(row.text)), row.contentType, true, func(event []byte) {
				events = append(events, strings.TrimSpace(string(event)))
			}, nil)
			if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{e}, make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if want := []string{strings.TrimSpace(first), strings.TrimSpace(second)}; !slices.Equal(events, want) {
				t.Errorf("%s read by %d bytes: events %q, want %q", row.name, size, events, want)
			}
		}
	}
}

func TestCache_Sweep_RemovesUnused(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	c := open(t, dir, w)
	for _, path := range []string{"/api/v1/namespaces/default/secrets/s", podsOfNode} {
		if _, _, err := request(t, c, "GET", w.URL+path, ""); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	c.entry("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").watches = 1
	c.mu.Unlock()
	c.sweep(time.Now().Add(idleLife + time.Minute))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%d files left, %v; want the watched list alone", len(left), err)
	}
}

// Requests for new keys, with no server to answer them for days, must not use up the memory.
func TestCache_Entries_AreBounded(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	c := open(t, dir, w)
	w.set(false)
	for i := range 100 {
		if _, _, err := request(t, c, "GET", fmt.Sprintf("%s/api/v1/namespaces/default/secrets/s%d", w.URL, i),
			""); err == nil {
			t.Fatal("a response without a server and without a file")
		}
	}
	if n := len(c.entries); n != 0 {
		t.Errorf("%d entries of keys that have no file", n)
	}
	// With a server, entries without a file come from watches that ended and from failed writes.
	c.mu.Lock()
	for i := range 100 {
		c.entry(fmt.Sprintf("/api/v1/namespaces/n%d/pods?", i))
	}
	c.entry("/api/v1/pods?").watches = 1
	c.mu.Unlock()
	c.sweep(time.Now().Add(idleLife / 2))
	if n := len(c.entries); n != 101 {
		t.Errorf("%d entries before their life is over, want all", n)
	}
	c.sweep(time.Now().Add(idleLife + time.Minute))
	if n := len(c.entries); n != 1 {
		t.Errorf("%d entries after it, want the watched one", n)
	}
}

func TestCache_Sweep_LeavesUnknownFiles(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	old := filepath.Join(dir, ".new-1")
	if err := os.WriteFile(old, []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-2 * idleLife)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	c := open(t, dir, w)
	if _, _, err := request(t, c, "GET", w.URL+podsOfNode, ""); err != nil {
		t.Fatal(err)
	}
	// Like a write in progress, and a disk that cannot be read for now.
	ours, unreadable := filepath.Join(dir, ".new-2"), filepath.Join(dir, "unreadable")
	if err := os.WriteFile(ours, []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(unreadable, 0o700); err != nil {
		t.Fatal(err)
	}
	c.sweep(time.Now())
	for _, row := range []struct {
		name, path string
		stays      bool
	}{
		{"left by a power cut", old, false}, {"write in progress", ours, true},
		{"unreadable", unreadable, true}, {"response", c.path(podsKey), true},
	} {
		if _, err := os.Lstat(row.path); (err == nil) != row.stays {
			t.Errorf("%s: %v, want it to stay: %v", row.name, err, row.stays)
		}
	}
}

// Responses may arrive in another order than their requests were sent.
func TestCache_Forget_OutlivesAnEarlierRequest(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	c := open(t, dir, w)
	const key = "/api/v1/namespaces/default/secrets/s"
	first, second := c.number(), c.number()
	c.forget(key, second)
	c.store(key, first, record{Key: key, Status: http.StatusOK}, []byte("deleted by now"))
	if c.has(key) {
		t.Error("an object that was deleted is stored")
	}
	c.store(key, c.number(), record{Key: key, Status: http.StatusOK}, []byte("created again"))
	c.forget(key, second)
	if !c.has(key) {
		t.Error("an object that was created again is gone")
	}
}

// Changes without pause must not prevent the sweep.
func TestCache_Run_SweepsWhileListsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, err := New(Config{Dir: dir, Next: nowhere{}, Link: nowhere{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		c.mu.Lock()
		c.entry("/api/v1/namespaces/default/secrets/s")
		c.mu.Unlock()
		for range 2 * int(idleLife/time.Minute) {
			time.Sleep(time.Minute)
			select {
			case c.wake <- struct{}{}:
			default:
			}
		}
		synctest.Wait()
		c.mu.Lock()
		n := len(c.entries)
		c.mu.Unlock()
		if n != 0 {
			t.Errorf("%d unused entries are left", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// nowhere is a server that counts as up and answers nothing.
type nowhere struct{}

func (nowhere) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("nobody answers")
}
func (nowhere) Up() bool { return true }

func (nowhere) Online() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
