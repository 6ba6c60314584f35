package store

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A gRPC stream receives requests until its handler has returned, so one can come when the stream
// is closed already.
func TestWatchStream_Create_AfterClose(t *testing.T) {
	s := openStore(t, Options{})
	st := s.watches.newStream()
	st.close()
	st.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	s.watches.hub.mu.Lock()
	defer s.watches.hub.mu.Unlock()
	if n := len(s.watches.hub.prefixes) + len(s.watches.hub.exact) + len(s.watches.hub.ranges) +
		len(st.watchers); n != 0 {
		t.Errorf("%d watches of a closed stream are fed", n)
	}
}

func TestLocalWatcher_Watch_AfterClose(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	if err := c.Watcher.Close(); err != nil {
		t.Fatal(err)
	}
	if r, ok := <-c.Watch(t.Context(), "k"); ok {
		t.Errorf("a closed watcher answered %+v", r)
	}
	s.watches.hub.mu.Lock()
	defer s.watches.hub.mu.Unlock()
	if n := len(s.watches.hub.exact) + len(s.watches.hub.streams); n != 0 {
		t.Errorf("%d watches of a closed watcher are fed", n)
	}
}
