package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// crash copies a store as a killed process leaves it.
func crash(t *testing.T, s *Store) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "state.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.opts.Path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path+suffix, b)
	}
	return path
}

func TestStore_DeferredKeys_SkipRevisionsAfterACrash(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "state.db"), DeferredKeys: []string{"beat/"}}
	s := openStore(t, o)
	c := s.Client(t.Context())
	other := mustPut(t, c, "other", "1")
	if s.writes.journal.marked {
		t.Error("a write of another key marks the file as having deferred writes")
	}
	var rev int64
	for range 3 {
		rev = mustPut(t, c, "beat/a", "2")
	}
	if deferredRows(s) != 3 || s.writes.journal.due == nil {
		t.Errorf("%d writes are deferred, want 3", deferredRows(s))
	}
	crashed := openStore(t, Options{Path: crash(t, s)})
	if got := crashed.Revision(); got != other+deferredSkip {
		t.Errorf("revision after a crash %d, want %d: any of the lost ones could come back", got, other+deferredSkip)
	}
	if g, err := crashed.Client(t.Context()).Get(t.Context(), "other"); err != nil || len(g.Kvs) != 1 {
		t.Errorf("a crash lost another write: %v, %v", g, err)
	}
	// A read of other keys leaves it held, and yet tells the newest revision.
	for _, get := range []func() (*clientv3.GetResponse, error){
		func() (*clientv3.GetResponse, error) { return c.Get(t.Context(), "other") },
		func() (*clientv3.GetResponse, error) { return c.Get(t.Context(), "o", clientv3.WithPrefix()) },
		func() (*clientv3.GetResponse, error) {
			return c.Get(t.Context(), "o", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(rev))
		},
	} {
		if g, err := get(); err != nil || g.Count != 1 || g.Header.Revision != rev || deferredRows(s) != 3 {
			t.Errorf("a read of other keys: %v, %v, then %d held", g, err, deferredRows(s))
		}
	}
	// A read sees what was acknowledged, and so does a watch from before.
	if g, err := c.Get(t.Context(), "beat/a"); err != nil || len(g.Kvs) != 1 || g.Kvs[0].ModRevision != rev ||
		g.Kvs[0].Version != 3 {
		t.Errorf("a read of what was held: %v, %v", g, err)
	}
	if deferredRows(s) != 0 || s.writes.journal.unsynced != 3 {
		t.Errorf("%d held, %d wait for the disk after a read; want 0 and 3", deferredRows(s), s.writes.journal.unsynced)
	}
	mustPut(t, c, "beat/a", "3")
	mustPut(t, c, "other", "3")
	if deferredRows(s) != 0 || s.writes.journal.unsynced != 0 || s.writes.journal.due != nil {
		t.Error("deferred writes were not flushed together with the next write")
	}
	seen := 0
	for w := range c.Watch(t.Context(), "beat/", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if seen += len(w.Events); seen == 4 {
			break
		}
	}
	// A lease on it, a deletion and a transaction that does more are not deferred.
	for _, op := range []clientv3.Op{
		clientv3.OpDelete("beat/a"),
		clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("beat/b", ""), clientv3.OpPut("other", "4")}, nil),
	} {
		if _, err := c.Do(t.Context(), op); err != nil || deferredRows(s) != 0 {
			t.Errorf("%d writes are deferred after %v (%v)", deferredRows(s), op, err)
		}
	}
}

func TestStore_DeferredKeys_CleanStopSkipsNothing(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "state.db"), DeferredKeys: []string{"beat/"}}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxDeferred + 1 { // one more than is held
		mustPut(t, s.Client(t.Context()), fmt.Sprint("beat/", i), "1")
	}
	if deferredRows(s) != 0 {
		t.Errorf("%d writes are deferred after %d", deferredRows(s), maxDeferred+1)
	}
	rev := mustPut(t, s.Client(t.Context()), "beat/a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, o)
	if s.Revision() != rev {
		t.Errorf("revision after a stop %d, want %d", s.Revision(), rev)
	}
	if g, err := s.Client(t.Context()).Get(t.Context(), "beat/", clientv3.WithPrefix()); err != nil ||
		len(g.Kvs) != maxDeferred+2 {
		t.Errorf("deferred writes after a stop: %v, %v", g, err)
	}
}

// deferredRows is how many writes are deferred, in memory only.
func deferredRows(s *Store) int {
	s.writes.journal.mu.Lock()
	defer s.writes.journal.mu.Unlock()
	return len(s.writes.journal.deferred)
}

func TestStore_DeferredKeys_AreSyncedInTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.Context(), Options{Path: path, DeferredKeys: []string{"beat/"}})
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, s.Client(t.Context()), "beat/a", "1")
		time.Sleep(deferFor - time.Second)
		synctest.Wait()
		if deferredRows(s) != 1 {
			t.Errorf("%d writes are deferred, want 1", deferredRows(s))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if deferredRows(s) != 0 || s.writes.journal.unsynced != 0 || s.writes.journal.due != nil {
			t.Errorf("%d writes are deferred and %d unsynced after %s", deferredRows(s), s.writes.journal.unsynced,
				deferFor)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStore_Lease_ClockJumps opens one file with the clock of today and with that of a synctest
// bubble, which stands at the year 2000: a jump of decades back, then one forward. What a lease has
// left counts, not the date.
func TestStore_Lease_ClockJumps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var id clientv3.LeaseID
	real := time.Now()
	session := func(t *testing.T, work func(s *Store, c *clientv3.Client)) {
		t.Helper()
		s, err := Open(t.Context(), Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ran := make(chan error, 1)
		go func() { ran <- s.leases.expire(ctx) }()
		work(s, s.Client(t.Context()))
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("leases stopped expiring: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	there := func(t *testing.T, c *clientv3.Client, want bool) {
		t.Helper()
		if g, err := c.Get(t.Context(), "leased"); err != nil || len(g.Kvs) == 1 != want {
			t.Errorf("the key on the lease: %v, %v; want it there: %v", g, err, want)
		}
	}
	session(t, func(s *Store, c *clientv3.Client) {
		l, err := c.Grant(t.Context(), 3600)
		if err != nil {
			t.Fatal(err)
		}
		id = l.ID
		mustPut(t, c, "leased", "", clientv3.WithLease(id))
		// While the store runs, the clock can be set as one likes: deadlines are readings of the
		// monotonic one.
		s.leases.lessor.mu.Lock()
		defer s.leases.lessor.mu.Unlock()
		if d := s.leases.lessor.leases[int64(id)].deadline; !strings.Contains(d.String(), " m=") {
			t.Errorf("the deadline %v follows the wall clock", d)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		if back := time.Until(real); back < 10*365*24*time.Hour {
			t.Fatalf("the clock was set back by %s only", back)
		}
		session(t, func(_ *Store, c *clientv3.Client) {
			time.Sleep(30 * time.Minute)
			synctest.Wait()
			there(t, c, true)
		})
	})
	session(t, func(_ *Store, c *clientv3.Client) {
		there(t, c, true)
		l, err := c.TimeToLive(t.Context(), id)
		if err != nil || l.TTL < 25*60 || l.TTL > 31*60 {
			t.Errorf("with half an hour of it used, the lease has %v left, %v", l, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		session(t, func(_ *Store, c *clientv3.Client) {
			time.Sleep(25 * time.Minute)
			synctest.Wait()
			there(t, c, true)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			there(t, c, false)
		})
	})
}
