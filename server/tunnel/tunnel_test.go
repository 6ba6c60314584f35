package tunnel

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/joinapi"
)

// feed is an informer of nodes as far as the server uses one.
type feed struct {
	cache.SharedIndexInformer
	handler cache.ResourceEventHandler
}

func (f *feed) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	f.handler = h
	return nil, nil
}

// start runs a server until the test ends.
func start(t *testing.T) (*Server, *feed) {
	t.Helper()
	f := &feed{}
	s, err := New(Config{Nodes: f})
	if err != nil {
		t.Fatal(err)
	}
	s.running = true
	t.Cleanup(s.work.Wait)
	return s, f
}

// What is remembered of nodes must not grow with those that are gone.
func TestServer_Plain_ForgetsDeletedNodes(t *testing.T) {
	s, f := start(t)
	for i := range 100 {
		o := object(fmt.Sprintf("n%d", i), 10250, nil, "192.0.2.1")
		f.handler.OnAdd(o, false)
		s.setPlain(o.Name, true)
		if !s.plain[o.Name] {
			t.Fatalf("%s is not remembered", o.Name)
		}
		f.handler.OnDelete(o)
		// A dial that ends after its node was deleted.
		s.setPlain(o.Name, true)
	}
	if len(s.plain) > 0 {
		t.Errorf("%d deleted nodes are remembered", len(s.plain))
	}
	o := object("n1", 10250, nil, "192.0.2.1")
	f.handler.OnAdd(o, false)
	s.setPlain(o.Name, true)
	s.setPlain(o.Name, false)
	if len(s.plain) > 0 {
		t.Error("a node that was not reached is remembered")
	}
}

func TestServer_ServeNode_CodeOfEachRefusal(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*Server, *http.Request)
		status int
		code   joinapi.Code
	}{
		"no upgrade": {func(_ *Server, r *http.Request) { r.Header.Del("Upgrade") }, http.StatusUpgradeRequired,
			joinapi.CodeBadRequest},
		"HTTP/2": {func(_ *Server, r *http.Request) { r.ProtoMajor = 2 }, http.StatusUpgradeRequired,
			joinapi.CodeBadRequest},
		"another method": {func(_ *Server, r *http.Request) { r.Method = http.MethodPost },
			http.StatusUpgradeRequired, joinapi.CodeBadRequest},
		"server stops": {func(s *Server, _ *http.Request) { s.running = false }, http.StatusServiceUnavailable,
			joinapi.CodeNotReady},
		"connection is kept": {func(*Server, *http.Request) {}, http.StatusInternalServerError, joinapi.CodeInternal},
		"tunnel is open": {func(s *Server, r *http.Request) {
			r.Header.Set(joinapi.HeaderTunnelHave, "other,"+s.name)
			openSession(t, s, "n1")
		}, http.StatusConflict, joinapi.CodeTunnelOpen},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t)
			r := httptest.NewRequest(http.MethodGet, joinapi.PathTunnel, nil)
			r.Header.Set("Upgrade", joinapi.TunnelProtocol)
			row.change(s, r)
			w := httptest.NewRecorder()
			s.ServeNode(w, r, "n1")
			var got joinapi.Error
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != row.status ||
				got.Code != row.code || got.Message == "" {
				t.Errorf("%d %s (%v), want %d %s", w.Code, w.Body, err, row.status, row.code)
			}
		})
	}
}

// openSession makes a tunnel of a pipe.
func openSession(t *testing.T, s *Server, node string) {
	t.Helper()
	ours, theirs := net.Pipe()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
	n, err := s.open(ours, node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.close()
		_ = theirs.Close()
		reading.Wait()
	})
}
