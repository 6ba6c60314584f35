package members

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-dev/mote/store/storetest"
)

func published(t *testing.T, m *Member, addresses ...string) []string {
	t.Helper()
	all, err := m.Publish(t.Context(), addresses)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMember_Publish_UnionOfTheLiving(t *testing.T) {
	client := storetest.Client(t)
	a, b := New(Config{client, "a", "1"}), New(Config{client, "b", "2"})
	if err := a.Claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all := published(t, b, "192.0.2.2", "fd00::2"); !slices.Equal(all, []string{"192.0.2.2", "fd00::2"}) {
		t.Errorf("while a serves nothing: %v", all)
	}
	if all := published(t, a, "192.0.2.1"); !slices.Equal(all, []string{"192.0.2.1", "192.0.2.2", "fd00::2"}) {
		t.Errorf("both: %v", all)
	}
	if all := published(t, b, "192.0.2.9"); !slices.Equal(all, []string{"192.0.2.1", "192.0.2.9"}) {
		t.Errorf("with another address of b: %v", all)
	}
	if rest, err := b.Withdraw(t.Context()); err != nil || !slices.Equal(rest, []string{"192.0.2.1"}) {
		t.Errorf("without b: %v, %v", rest, err)
	}
	if err := b.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := client.Get(t.Context(), prefix, clientv3.WithPrefix())
	if err != nil || len(entries.Kvs) != 1 {
		t.Errorf("%d entries after b left, %v", len(entries.Kvs), err)
	}
	if entries.Kvs[0].Lease == 0 {
		t.Error("the entry would stay for good")
	}
}

func TestMember_Publish_UnchangedWritesNothing(t *testing.T) {
	client := storetest.Client(t)
	a := New(Config{client, "a", "1"})
	published(t, a, "192.0.2.1")
	before, err := client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	published(t, a, "192.0.2.1")
	after, err := client.Get(t.Context(), "x")
	if err != nil || after.Header.Revision != before.Header.Revision {
		t.Errorf("revision went from %d to %d, %v", before.Header.Revision, after.Header.Revision, err)
	}
}

// An etcd that was away for longer than an entry lives has dropped it.
func TestMember_Publish_EntryEnded_IsMadeAnew(t *testing.T) {
	client := storetest.Client(t)
	a := New(Config{client, "a", "1"})
	published(t, a, "192.0.2.1")
	if _, err := client.Revoke(t.Context(), a.lease); err != nil {
		t.Fatal(err)
	}
	if all := published(t, a, "192.0.2.1"); !slices.Equal(all, []string{"192.0.2.1"}) {
		t.Errorf("after the entry ended: %v", all)
	}
}

func TestMember_Claim_NameOfALivingServer(t *testing.T) {
	client := storetest.Client(t)
	first := New(Config{client, "a", "1"})
	published(t, first, "192.0.2.1")
	if err := New(Config{client, "a", "2"}).Claim(t.Context()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another machine under the name: %v", err)
	}
	// The same server, killed a moment ago, comes back at once and serves nothing yet.
	again := New(Config{client, "a", "1"})
	if err := again.Claim(t.Context()); err != nil {
		t.Errorf("the same machine: %v", err)
	}
	if rest, err := again.Withdraw(t.Context()); err != nil || len(rest) != 0 {
		t.Errorf("it serves at %v, %v", rest, err)
	}
	if err := again.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := New(Config{client, "a", "2"}).Claim(t.Context()); err != nil {
		t.Errorf("after it left: %v", err)
	}
}

// An entry that cannot be read may be another server's: the name is not free.
func TestMember_Claim_EntryUnreadable_IsKept(t *testing.T) {
	client := storetest.Client(t)
	m := New(Config{client, "a", "1"})
	if _, err := client.Put(t.Context(), m.key(), "{"); err != nil {
		t.Fatal(err)
	}
	if err := m.Claim(t.Context()); err == nil || errors.Is(err, ErrNameTaken) ||
		!strings.Contains(err.Error(), m.key()) {
		t.Errorf("claimed with %v", err)
	}
	if had, err := client.Get(t.Context(), m.key()); err != nil || string(had.Kvs[0].Value) != "{" {
		t.Errorf("the entry was replaced (%v)", err)
	}
}

func TestMember_Exclusively_OneAtATime(t *testing.T) {
	client := storetest.Client(t)
	var inside, calls atomic.Int32
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			m := New(Config{client, strconv.Itoa(i), strconv.Itoa(i)})
			err := m.Exclusively(t.Context(), func(ctx context.Context) error {
				defer inside.Add(-1)
				if inside.Add(1) > 1 {
					t.Error("two at once")
				}
				calls.Add(1)
				// A write of its own takes a moment.
				_, err := client.Put(ctx, "x", strconv.Itoa(i))
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if calls.Load() != 4 {
		t.Errorf("%d calls, want 4", calls.Load())
	}
}

// A server that is killed in its turn must not keep the others out for good.
func TestMember_Exclusively_KilledInside_OthersGoOn(t *testing.T) {
	client := storetest.Client(t)
	killed := New(Config{client, "a", "1"})
	if _, err := killed.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- New(Config{client, "b", "2"}).Exclusively(t.Context(), func(context.Context) error { return nil })
	}()
	// What the etcd does when the lease of a runs out.
	if _, err := client.Revoke(t.Context(), killed.lease); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	broken := errors.New("broken")
	if err := killed.Exclusively(t.Context(), func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("work that fails: %v", err)
	}
}
