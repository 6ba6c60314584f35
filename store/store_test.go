package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zaptest"
)

// openStore opens a store, runs it, and at the end of the test closes it and checks the whole file.
func openStore(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "state.db")
	}
	if o.Logger == nil {
		o.Logger = zaptest.NewLogger(t)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := CheckFile(context.Background(), o.Path); err != nil {
			t.Errorf("check after the test: %v", err)
		}
	})
	return s
}

func mustPut(t *testing.T, c *clientv3.Client, key, val string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	r, err := c.Put(t.Context(), key, val, opts...)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return r.Header.Revision
}

func TestStore_Get_AtOldRevisions(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	r1 := mustPut(t, c, "a", "1")
	r2 := mustPut(t, c, "a", "2")
	if _, err := c.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	r4 := mustPut(t, c, "a", "4")
	if r1 != 2 || r4 != 5 {
		t.Fatalf("revisions %d..%d, want 2..5", r1, r4)
	}
	mustPut(t, c, "b", "1")
	if _, err := c.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, c, "c", "1")
	for rev, want := range map[int64]string{r1: "1", r2: "2", 4: "", r4: "4", 7: "4", 0: "4"} {
		for _, opts := range [][]clientv3.OpOption{{}, {clientv3.WithRange("c")}} {
			g, err := c.Get(t.Context(), "a", append(opts, clientv3.WithRev(rev))...)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(g.Kvs) > 0 {
				got = string(g.Kvs[0].Value)
			}
			if got != want || g.Count != int64(len(g.Kvs)) {
				t.Errorf("at %d: %q (count %d), want %q", rev, got, g.Count, want)
			}
		}
	}
	if _, err := c.Get(t.Context(), "a", clientv3.WithRev(9)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("future revision: %v", err)
	}
}

// A transaction that fails in the middle changes nothing, and does not take the others of its batch
// with it.
func TestStore_Txn_FailsWhole(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	rev := mustPut(t, c, "k", "v")
	// The zero byte as end is no bound, which the check for overlaps does not count, see
	// validate.go.
	_, err := c.Txn(t.Context()).Then(clientv3.OpDelete("a", clientv3.WithFromKey()),
		clientv3.OpPut("k", "", clientv3.WithIgnoreValue())).Commit()
	if !errors.Is(err, rpctypes.ErrKeyNotFound) {
		t.Errorf("transaction: %v", err)
	}
	g, err := c.Get(t.Context(), "k")
	if err != nil || g.Count != 1 || g.Header.Revision != rev {
		t.Errorf("after it: %+v, %v", g, err)
	}
}

func TestStore_Compact_SweepsAndRefuses(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	for i := range 500 {
		mustPut(t, c, fmt.Sprintf("k%d", i%10), fmt.Sprint(i))
	}
	if _, err := c.Delete(t.Context(), "k3"); err != nil {
		t.Fatal(err)
	}
	rev := mustPut(t, c, "last", "x")
	if _, err := c.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	n, err := s.reads.count(t.Context(), "SELECT count(*) FROM log")
	if err != nil || n != 10 {
		t.Errorf("%d rows left (%v), want 10", n, err)
	}
	n, err = s.reads.count(t.Context(), "SELECT count(*) FROM cur")
	if err != nil || n != 10 {
		t.Errorf("%d keys left (%v), want 10", n, err)
	}
	if _, err := c.Get(t.Context(), "k1", clientv3.WithRev(rev-1)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("compacted revision: %v", err)
	}
	if _, err := c.Compact(t.Context(), rev); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Errorf("compact again: %v", err)
	}
	w := <-c.Watch(t.Context(), "k", clientv3.WithPrefix(), clientv3.WithRev(5))
	if w.CompactRevision != rev || !errors.Is(w.Err(), rpctypes.ErrCompacted) {
		t.Errorf("watch from a compacted revision: %+v", w)
	}
}

func TestStore_Watch_FollowsHistoryAndPresent(t *testing.T) {
	s := openStore(t, Options{WatchBufferEvents: 16})
	c := s.Client(t.Context())
	const n = 5000
	first := mustPut(t, c, "w/0", "0")
	for i := 1; i < n/2; i++ {
		mustPut(t, c, fmt.Sprintf("w/%d", i), "v")
	}
	ch := c.Watch(t.Context(), "w/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV())
	go func() {
		for i := n / 2; i < n; i++ {
			if _, err := c.Put(context.Background(), "w/x", fmt.Sprint(i)); err != nil {
				t.Errorf("put: %v", err)
				return
			}
		}
	}()
	next := first
	for next < first+n {
		r := <-ch
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		for _, ev := range r.Events {
			if ev.Kv.ModRevision != next {
				t.Fatalf("event of revision %d, want %d", ev.Kv.ModRevision, next)
			}
			if (ev.PrevKv != nil) != (ev.Kv.Version > 1) {
				t.Fatalf("previous version %v at version %d", ev.PrevKv, ev.Kv.Version)
			}
			next++
		}
	}
	if err := c.RequestProgress(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := <-ch; !r.IsProgressNotify() || r.Header.Revision != s.Revision() {
		t.Errorf("progress: %+v", r)
	}
}

func TestStore_Lease_ExpiresAndSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	// In a bubble no time passes while the disk is waited for, which can take longer than the
	// lease.
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.Context(), Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		c := s.Client(t.Context())
		l, err := c.Grant(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, c, "leased", "v", clientv3.WithLease(l.ID))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(t.Context(), Options{Path: path}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		// All of Run would listen for who asks for snapshots, and a listener keeps the bubble's
		// clock from moving.
		go func() { ran <- s.leases.expire(ctx) }()
		defer func() {
			cancel()
			if err := <-ran; err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		c = s.Client(t.Context())
		if ttl, err := c.TimeToLive(t.Context(), l.ID, clientv3.WithAttachedKeys()); err != nil || ttl.TTL < 1 ||
			len(ttl.Keys) != 1 {
			t.Fatalf("lease after restart: %+v %v", ttl, err)
		}
		ch := c.Watch(t.Context(), "leased")
		select {
		case r := <-ch:
			if len(r.Events) != 1 || r.Events[0].Type != clientv3.EventTypeDelete {
				t.Fatalf("got %+v, want the deletion", r)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("lease did not expire")
		}
		if ttl, err := c.TimeToLive(t.Context(), l.ID); err != nil || ttl.TTL != -1 {
			t.Fatalf("expired lease: %+v %v", ttl, err)
		}
		if _, err := c.Put(t.Context(), "x", "y", clientv3.WithLease(l.ID)); !errors.Is(err,
			rpctypes.ErrLeaseNotFound) {
			t.Fatalf("put with an expired lease: %v", err)
		}
	})
	if _, err := CheckFile(t.Context(), path); err != nil {
		t.Errorf("check after the test: %v", err)
	}
}

func TestSnapshot_RestoresAndRefusesDamage(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	for i := range 300 {
		mustPut(t, c, fmt.Sprintf("k%d", i), "value")
	}
	dir := t.TempDir()
	info, err := Snapshot(t.Context(), s.opts.Path, dir)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := ListSnapshots(dir); err != nil || len(all) != 1 || all[0].Revision != 301 {
		t.Fatalf("list: %+v %v", all, err)
	}
	path := filepath.Join(t.TempDir(), "db", "state.db")
	for i, wantKept := range []bool{false, true} {
		res, err := Restore(t.Context(), info.Path, path)
		if err != nil || (res.Kept != "") != wantKept {
			t.Fatalf("restore %d: %+v %v", i, res, err)
		}
	}
	restored := openStore(t, Options{Path: path})
	g, err := restored.Client(t.Context()).Get(t.Context(), "k", clientv3.WithPrefix())
	if err != nil || g.Count != 300 || g.Header.Revision < restoredAhead {
		t.Fatalf("restored: %d keys at %d, %v", g.Count, g.Header.Revision, err)
	}
}

func BenchmarkStore_Put(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			s, err := Open(b.Context(), Options{Path: filepath.Join(b.TempDir(), "state.db")})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			c := s.Client(b.Context())
			val := string(make([]byte, 1024))
			b.SetParallelism(clients / 2)
			if clients == 1 {
				for i := 0; b.Loop(); i++ {
					if _, err := c.Put(b.Context(), fmt.Sprintf("/registry/pods/default/pod-%d", i), val); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			var n atomic.Int64
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := c.Put(b.Context(), fmt.Sprintf("/registry/pods/default/pod-%d", n.Add(1)),
						val); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkStore_List500(b *testing.B) {
	s, err := Open(b.Context(), Options{Path: filepath.Join(b.TempDir(), "state.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := s.Client(b.Context())
	val := string(make([]byte, 1024))
	for i := range 40 {
		var ops []clientv3.Op
		for j := range 50 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("/registry/pods/ns-%d/pod-%d", j%4, i*50+j), val))
		}
		if _, err := c.Txn(b.Context()).Then(ops...).Commit(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		g, err := c.Get(b.Context(), "/registry/pods/ns-2/", clientv3.WithPrefix())
		if err != nil || len(g.Kvs) != 480 && len(g.Kvs) != 500 {
			b.Fatal(len(g.Kvs), err)
		}
	}
}

func BenchmarkStore_Get(b *testing.B) {
	s, err := Open(b.Context(), Options{Path: filepath.Join(b.TempDir(), "state.db")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := s.Client(b.Context())
	if _, err := c.Put(b.Context(), "/registry/pods/ns/pod", string(make([]byte, 1024))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Get(b.Context(), "/registry/pods/ns/pod"); err != nil {
			b.Fatal(err)
		}
	}
}
