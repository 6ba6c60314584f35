package offline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

const (
	allNodes = "/api/v1/nodes"
	ownNode  = "/api/v1/nodes?fieldSelector=metadata.name%3Dn1"
)

func node(name, version string, heartbeat time.Time) *corev1.Node {
	return &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version,
			Labels: map[string]string{"a": "1", "b": "2", "c": "3"}},
		Spec: corev1.NodeSpec{PodCIDR: "10.42.1.0/24"},
		Status: corev1.NodeStatus{
			Capacity: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"),
				corev1.ResourceMemory: resource.MustParse("1Gi")},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue,
				LastHeartbeatTime: metav1.NewTime(heartbeat)}},
			Images: []corev1.ContainerImage{{Names: []string{"image:" + version}}},
		},
	}
}

// encodings are those of API servers.
var encodings = []struct {
	name, contentType string
	list              func(*testing.T, ...*corev1.Node) []byte
	event             func(*testing.T, string, *corev1.Node) []byte
}{
	{"JSON", "application/json",
		func(t *testing.T, nodes ...*corev1.Node) []byte { return toJSON(t, listOfNodes(nodes)) },
		func(t *testing.T, kind string, n *corev1.Node) []byte {
			return append(toJSON(t, metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: toJSON(t, n)}}),
				'\n')
		}},
	{"protobuf", "application/vnd.kubernetes.protobuf",
		func(t *testing.T, nodes ...*corev1.Node) []byte { return toProtobuf(t, listOfNodes(nodes)) },
		func(t *testing.T, kind string, n *corev1.Node) []byte {
			e := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: toProtobuf(t, n)}}
			text, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			return append([]byte{0, 0, byte(len(text) >> 8), byte(len(text))}, text...)
		}},
}

func listOfNodes(nodes []*corev1.Node) *corev1.NodeList {
	list := &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}}
	for _, n := range nodes {
		list.ResourceVersion = n.ResourceVersion
		list.Items = append(list.Items, *n)
	}
	return list
}

func toJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func toProtobuf(t *testing.T, obj runtime.Object) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(obj, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Who writes down each time that some node lives wears disks out: in a cluster of many one always
// just has.
func TestCache_Nodes_HeartbeatsAreNoChange(t *testing.T) {
	for _, encoding := range encodings {
		t.Run(encoding.name, func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			c, err := New(Config{Dir: dir, Next: w, Link: w})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Unix(1_700_000_000, 0)
			key := allNodes + "?"
			keep := func(nodes ...*corev1.Node) {
				c.store(key, c.number(), record{Key: key, Status: 200, ContentType: encoding.contentType},
					encoding.list(t, nodes...))
			}
			keep(node("n1", "1", begin), node("n2", "2", begin))
			first, err := os.Stat(c.path(key))
			if err != nil {
				t.Fatal(err)
			}
			keep(node("n1", "3", begin.Add(time.Minute)), node("n2", "4", begin.Add(time.Minute)))
			// A replaced file is another one.
			if now, err := os.Stat(c.path(key)); err != nil || !os.SameFile(first, now) {
				t.Errorf("heartbeats were written (%v)", err)
			}
			tainted := node("n2", "9", begin)
			tainted.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
			for _, row := range []struct {
				name, kind string
				node       *corev1.Node
				want       bool
			}{
				{"heartbeat", "MODIFIED", node("n1", "5", begin.Add(2*time.Minute)), false},
				{"the same as added, like after a new watch", "ADDED", node("n1", "5", begin.Add(2*time.Minute)),
					false},
				{"taint", "MODIFIED", tainted, true},
				{"the same taint", "MODIFIED", tainted, false},
				{"taint removed", "MODIFIED", node("n2", "10", begin), true},
				{"another node", "ADDED", node("n3", "11", begin), true},
				{"its heartbeat", "MODIFIED", node("n3", "12", begin.Add(time.Minute)), false},
				{"gone", "DELETED", node("n3", "13", begin.Add(time.Minute)), true},
				{"back", "ADDED", node("n3", "14", begin.Add(time.Minute)), true},
			} {
				body := newEvents(io.NopCloser(bytes.NewReader(encoding.event(t, row.kind, row.node))),
					encoding.contentType, true, func(event []byte) {
						if got := c.nodeChanged(key, event, isBinary(encoding.contentType)); got != row.want {
							t.Errorf("%s: a change %v, want %v", row.name, got, row.want)
						}
					}, nil)
				if n, err := io.Copy(io.Discard, body); err != nil || n == 0 {
					t.Fatal(n, err)
				}
			}
			keep(tainted)
			if now, err := os.Stat(c.path(key)); err != nil || os.SameFile(first, now) {
				t.Errorf("a taint was not written (%v)", err)
			}
		})
	}
}

func TestCache_Nodes_WhatCannotBeDecodedIsAChange(t *testing.T) {
	w := newWorld(t)
	c := open(t, t.TempDir(), w)
	for _, event := range []string{"", "{", `{"type":"MODIFIED","object":{"kind":"Unheard","apiVersion":"v1"}}`,
		`{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1"}}`} {
		for _, binary := range []bool{false, true} {
			if !c.nodeChanged(allNodes+"?", []byte(event), binary) {
				t.Errorf("%q (binary: %v) is no change", event, binary)
			}
		}
	}
}

// A kubelet reads its pods once it knows its own Node, which it registers itself after the first
// list.
func TestCache_OwnNode_KnownAfterKillSoonAfterJoin(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	w.pods = nil
	start := func(ctx context.Context) (*Cache, cache.SharedIndexInformer) {
		c := open(t, dir, w)
		client, err := kubernetes.NewForConfig(&rest.Config{Host: w.URL, Transport: c})
		if err != nil {
			t.Fatal(err)
		}
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=n1" }))
		informer := factory.Core().V1().Nodes().Informer()
		factory.Start(ctx.Done())
		t.Cleanup(factory.Shutdown)
		if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			t.Fatal("informer has not synced")
		}
		return c, informer
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w.kind = "NodeList"
	c, informer := start(ctx)
	registered := make(chan struct{})
	if _, err := informer.AddEventHandler(
		cache.ResourceEventHandlerFuncs{AddFunc: func(any) { close(registered) }}); err != nil {
		t.Fatal(err)
	}
	<-w.watched
	w.mu.Lock()
	w.pods = []string{"n1"}
	w.mu.Unlock()
	w.events <- strings.TrimSpace(string(encodings[0].event(t, "ADDED", node("n1", "8", time.Now()))))
	<-registered
	await(t, ctx, "own node on disk", func() bool {
		data, err := os.ReadFile(c.path("/api/v1/nodes?fieldSelector=metadata.name%3Dn1"))
		return err == nil && bytes.Contains(data, []byte(`"name":"n1"`))
	})
	// Like after a kill: nothing is written at the end.
	w.set(false)
	if _, informer = start(ctx); len(informer.GetStore().ListKeys()) != 1 {
		t.Errorf("without a server the informer knows %v, want n1", informer.GetStore().ListKeys())
	}
}

// await polls until ok, or fails the test when ctx ends.
func await(t *testing.T, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("not in time: " + what)
		case <-tick.C:
		}
	}
}

// scripted is a server without a network that is always up.
type scripted func(*http.Request) (*http.Response, error)

func (s scripted) RoundTrip(r *http.Request) (*http.Response, error) { return s(r) }

func (scripted) Up() bool { return true }

func (scripted) Online() <-chan struct{} { return closedChannel }

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func respond(r *http.Request, status int, text string) *http.Response {
	return newResponse(r, status, "application/json", io.NopCloser(strings.NewReader(text)))
}

func TestCache_Changed_KeepsItsPace(t *testing.T) {
	for _, row := range []struct {
		name     string
		path     string
		modified bool
		within   time.Duration // of one change after a quiet time
		most     int           // reads in five minutes of a change each 100 ms
	}{
		{"own node added", ownNode, false, 0, 310},
		{"own pods added", podsOfNode, false, 0, 310},
		{"own pods change", podsOfNode, true, time.Second, 310},
		{"services", "/api/v1/services", true, time.Second, 15},
		{"endpoints added", "/apis/discovery.k8s.io/v1/endpointslices", false, time.Second, 15},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var reads []time.Time
				server := scripted(func(r *http.Request) (*http.Response, error) {
					reads = append(reads, time.Now())
					return respond(r, 200, fmt.Sprint(len(reads))), nil
				})
				c, err := New(Config{Dir: t.TempDir(), Next: server, Link: server})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- c.Run(ctx) }()
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://kubernetes"+row.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, key, p, err := classify(r)
				if err != nil {
					t.Fatal(err)
				}
				c.mu.Lock()
				c.entry(key).reread = r
				c.mu.Unlock()
				change := func() {
					batch := p.added
					if row.modified {
						batch = p.modified
					}
					c.changed(key, p, batch)
				}
				synctest.Wait()
				begin := time.Now()
				change()
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(reads) != 1 || reads[0].Sub(begin) != row.within {
					t.Errorf("one change led to reads after %v, want one after %v", reads, row.within)
				}
				reads = nil
				for range 3000 {
					change()
					time.Sleep(100 * time.Millisecond)
				}
				synctest.Wait()
				if len(reads) < row.most/2 || len(reads) > row.most {
					t.Errorf("%d reads in five minutes, want %d to %d", len(reads), row.most/2, row.most)
				}
				last := time.Now()
				change()
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				// An orderly stop loses no pending read.
				if got := reads[len(reads)-1]; got.Before(last) {
					t.Errorf("read last %v before the last change", last.Sub(got))
				}
				data, err := os.ReadFile(c.path(key))
				if err != nil || !bytes.HasSuffix(data, fmt.Append(nil, "\n", len(reads))) {
					t.Errorf("the file has %q (%v), want the last read, %d", data, err, len(reads))
				}
			})
		})
	}
}

// Two clients list the same, and the first to send its request is the last to get its response.
func TestCache_Store_OlderResponse_DoesNotReplaceNewer(t *testing.T) {
	firstSent, answerFirst := make(chan struct{}), make(chan struct{})
	server := scripted(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Who") == "first" {
			close(firstSent)
			<-answerFirst
			return respond(r, 200, "old"), nil
		}
		return respond(r, 200, "new"), nil
	})
	c, err := New(Config{Dir: t.TempDir(), Next: server, Link: server})
	if err != nil {
		t.Fatal(err)
	}
	list := func(who string) error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://kubernetes/api/v1/services", nil)
		if err != nil {
			return err
		}
		r.Header.Set("Who", who)
		response, err := c.RoundTrip(r)
		if err != nil {
			return err
		}
		return response.Body.Close()
	}
	done := make(chan error, 1)
	go func() { done <- list("first") }()
	<-firstSent
	if err := list("second"); err != nil {
		t.Fatal(err)
	}
	close(answerFirst)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(c.path("/api/v1/services?")); err != nil || !bytes.HasSuffix(data, []byte("\nnew")) {
		t.Errorf("the file has %q (%v), want the response to the later request", data, err)
	}
}

// A server that is up and broken must not block the start of a node.
func TestCache_RoundTrip_BrokenServer(t *testing.T) {
	const path = "https://kubernetes" + podsOfNode
	for _, row := range []struct {
		name   string
		answer scripted
		cached bool // by an earlier process
		want   string
		status int
		after  time.Duration
	}{
		{"silent", func(r *http.Request) (*http.Response,
			error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}, true, "cached", 200, patience},
		{"starting", func(r *http.Request) (*http.Response, error) { return respond(r, 503, "wait"), nil }, true,
			"cached", 200, 0},
		{"starting, nothing cached", func(r *http.Request) (*http.Response,
			error) {
			return respond(r, 503, "wait"), nil
		}, false, "wait", 503, 0},
		{"refusing", func(r *http.Request) (*http.Response, error) { return respond(r, 403, "no"), nil }, true, "no",
			403, 0},
		{"slow, nothing cached", func(r *http.Request) (*http.Response, error) {
			time.Sleep(time.Minute)
			return respond(r, 200, "new"), nil
		}, false, "new", 200, time.Minute},
		{"working", func(r *http.Request) (*http.Response, error) { return respond(r, 200, "new"), nil }, true, "new",
			200, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				get := func(c *Cache) (int, string) {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
					if err != nil {
						t.Fatal(err)
					}
					response, err := c.RoundTrip(r)
					if err != nil {
						return 0, err.Error()
					}
					text, err := io.ReadAll(response.Body)
					if err != nil {
						t.Fatal(err)
					}
					return response.StatusCode, string(text)
				}
				process := func(server scripted) *Cache {
					c, err := New(Config{Dir: dir, Next: server, Link: server})
					if err != nil {
						t.Fatal(err)
					}
					return c
				}
				if row.cached {
					get(process(func(r *http.Request) (*http.Response,
						error) {
						return respond(r, 200, "cached"), nil
					}))
				}
				answers := row.answer
				c := process(func(r *http.Request) (*http.Response, error) { return answers(r) })
				begin := time.Now()
				status, text := get(c)
				if status != row.status || text != row.want || time.Since(begin) != row.after {
					t.Errorf("returned %d %q after %v, want %d %q after %v", status, text, time.Since(begin),
						row.status, row.want, row.after)
				}
				// The second request waits for the server, however long it takes.
				answers = func(r *http.Request) (*http.Response, error) {
					time.Sleep(time.Hour)
					return respond(r, 200, "newer"), nil
				}
				if row.want == "cached" {
					if status, text := get(c); status != 200 || text != "newer" {
						t.Errorf("the second request returned %d %q", status, text)
					}
				}
			})
		})
	}
}

// Only a response that names the object as missing makes the cache forget it.
func TestCache_RoundTrip_NotFound(t *testing.T) {
	const path = "https://kubernetes/api/v1/namespaces/default/secrets/s"
	status := &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure,
		Reason:   metav1.StatusReasonNotFound,
		Code:     http.StatusNotFound,
	}
	for _, row := range []struct {
		name, body string
		stays      bool
	}{
		{"the object, as JSON", string(toJSON(t, status)), false},
		{"the object, as protobuf", string(toProtobuf(t, status)), false},
		{"the path", "404 page not found", true},
		{"nothing", "", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, body := http.StatusOK, "secret"
			server := scripted(func(r *http.Request) (*http.Response, error) { return respond(r, code, body), nil })
			c, err := New(Config{Dir: t.TempDir(), Next: server, Link: server})
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := request(t, c, http.MethodGet, path, ""); err != nil {
				t.Fatal(err)
			}
			code, body = http.StatusNotFound, row.body
			if _, _, err := request(t, c, http.MethodGet, path, ""); err != nil {
				t.Fatal(err)
			}
			if got := c.has("/api/v1/namespaces/default/secrets/s"); got != row.stays {
				t.Errorf("the object is cached: %v, want %v", got, row.stays)
			}
		})
	}
}
