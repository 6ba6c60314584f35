package store

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/mote-dev/mote/store/storetest"
)

// clients gives the test a client over a connection and one in the process, each on a store of its
// own.
func clients(t *testing.T, test func(t *testing.T, c *clientv3.Client)) {
	t.Run("grpc", func(t *testing.T) {
		p, err := startStore(t, filepath.Join(t.TempDir(), "state.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		test(t, dial(t, p.addr))
	})
	t.Run("in-process", func(t *testing.T) {
		test(t, storetest.Open(t).Client(t.Context()))
	})
}

func TestConcurrency_Mutex(t *testing.T) {
	clients(t, func(t *testing.T, c *clientv3.Client) {
		inside, count := 0, 0
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s, err := concurrency.NewSession(c, concurrency.WithTTL(60))
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				m := concurrency.NewMutex(s, "lock")
				for range 5 {
					if err := m.Lock(t.Context()); err != nil {
						t.Error(err)
						return
					}
					if inside++; inside != 1 {
						t.Errorf("%d holders at once", inside)
					}
					count++
					inside--
					if err := m.Unlock(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if count != 20 {
			t.Errorf("locked %d times, want 20", count)
		}
	})
}

func TestConcurrency_Election(t *testing.T) {
	clients(t, func(t *testing.T, c *clientv3.Client) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var sessions []*concurrency.Session
		for range 2 {
			s, err := concurrency.NewSession(c, concurrency.WithTTL(60))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			sessions = append(sessions, s)
		}
		first, second := concurrency.NewElection(sessions[0], "vote"), concurrency.NewElection(sessions[1], "vote")
		if err := first.Campaign(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		won := make(chan error, 1)
		go func() { won <- second.Campaign(ctx, "two") }()
		if l, err := second.Leader(ctx); err != nil || string(l.Kvs[0].Value) != "one" {
			t.Fatalf("leader %v, %v", l, err)
		}
		// The leader's session ends without a word, as when its process dies: its lease runs out.
		sessions[0].Orphan()
		if _, err := c.Revoke(ctx, sessions[0].Lease()); err != nil {
			t.Fatal(err)
		}
		if err := <-won; err != nil {
			t.Fatal(err)
		}
		if l, err := second.Leader(ctx); err != nil || string(l.Kvs[0].Value) != "two" {
			t.Fatalf("leader %v, %v", l, err)
		}
	})
}

func TestConcurrency_STM(t *testing.T) {
	clients(t, func(t *testing.T, c *clientv3.Client) {
		const accounts, moves = 5, 30
		for i := range accounts {
			if _, err := c.Put(t.Context(), fmt.Sprintf("account/%d", i), "100"); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range moves {
					from, to := fmt.Sprintf("account/%d", (w+i)%accounts), fmt.Sprintf("account/%d", (w+i*3+1)%accounts)
					if from == to {
						continue
					}
					if _, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
						a, _ := strconv.Atoi(s.Get(from))
						b, _ := strconv.Atoi(s.Get(to))
						s.Put(from, strconv.Itoa(a-1))
						s.Put(to, strconv.Itoa(b+1))
						return nil
					}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		g, err := c.Get(t.Context(), "account/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, kv := range g.Kvs {
			n, _ := strconv.Atoi(string(kv.Value))
			sum += n
		}
		if sum != 100*accounts {
			t.Errorf("%d in all accounts, want %d", sum, 100*accounts)
		}
	})
}
