package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// keyModel is which keys there were at each revision.
type keyModel struct{ at map[int64][]string }

func (m *keyModel) note(rev int64, keys map[string]bool) {
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	sort.Strings(sorted)
	m.at[rev] = sorted
}

func (m *keyModel) count(rev int64, from, end string) int64 {
	keys := m.at[rev]
	return int64(max(sort.SearchStrings(keys, end)-sort.SearchStrings(keys, from), 0))
}

func TestStore_Count_AgreesWithTheKeys(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Options{Path: filepath.Join(dir, "state.db")})
	c := s.Client(t.Context())
	rnd := rand.New(rand.NewPCG(1, 2))
	m := &keyModel{at: map[int64][]string{}}
	have := map[string]bool{}
	var revs []int64
	var last int64
	check := func(c *clientv3.Client, revs []int64) {
		t.Helper()
		for range 20 {
			from, end := fmt.Sprintf("k/%05d", rnd.IntN(12_000)), fmt.Sprintf("k/%05d", rnd.IntN(12_000))
			rev := revs[rnd.IntN(len(revs))]
			g, err := c.Get(t.Context(), from, clientv3.WithRange(end), clientv3.WithCountOnly(), clientv3.WithRev(rev))
			if err != nil || g.Count != m.count(rev, from, end) {
				t.Fatalf("count of %s to %s at %d: %v, %v, want %d", from, end, rev, g, err, m.count(rev, from, end))
			}
		}
	}
	for range 60 {
		var ops []clientv3.Op
		doomed := ""
		switch rnd.IntN(4) {
		case 0:
			doomed = fmt.Sprintf("k/%03d", rnd.IntN(100))
			ops = append(ops, clientv3.OpDelete(doomed, clientv3.WithPrefix()))
		default:
			seen := map[string]bool{}
			for range 128 {
				if k := fmt.Sprintf("k/%05d", rnd.IntN(10_000)); !seen[k] {
					seen[k] = true
					ops = append(ops, clientv3.OpPut(k, "v"))
				}
			}
			for k := range seen {
				have[k] = true
			}
		}
		for k := range have {
			if doomed != "" && len(k) > len(doomed) && k[:len(doomed)] == doomed {
				delete(have, k)
			}
		}
		r, err := c.Txn(t.Context()).Then(ops...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		if r.Header.Revision != last {
			last = r.Header.Revision
			revs = append(revs, last)
			m.note(last, have)
		}
		check(c, revs)
		if rnd.IntN(10) == 0 {
			if _, err := c.Compact(t.Context(), last, clientv3.WithCompactPhysical()); err != nil {
				t.Fatal(err)
			}
			revs = revs[len(revs)-1:]
		}
	}
	if len(s.compactor.keys.n) < 4 {
		t.Errorf("%d keys are counted in %d ranges", len(have), len(s.compactor.keys.n))
	}

	// What a killed process leaves: the file and the log as they are, the keyCounts some way
	// behind.
	crashed := filepath.Join(dir, "crashed.db")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(s.opts.Path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		write(t, crashed+suffix, b)
	}
	check(openStore(t, Options{Path: crashed}).Client(t.Context()), revs)
}

// TestStore_Count_IsOfItsRevision has each revision make one key, so that revision and count must
// go together, whoever is ahead: the reader's snapshot or the keyCounts.
func TestStore_Count_IsOfItsRevision(t *testing.T) {
	s := openStore(t, Options{})
	c := s.Client(t.Context())
	base := int64(0)
	for i := 0; i < 5000; i += 100 {
		var ops []clientv3.Op
		for j := i; j < i+100; j++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("k/%05d", j), ""))
		}
		r, err := c.Txn(t.Context()).Then(ops...).Commit()
		if err != nil {
			t.Fatal(err)
		}
		base = r.Header.Revision
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				if _, err := c.Put(t.Context(), fmt.Sprintf("k/%05d/%d/%d", i*50, w, i), ""); err != nil {
					t.Errorf("put: %v", err)
				}
			}
		})
		wg.Go(func() {
			for range 300 {
				g, err := c.Get(t.Context(), "k/", clientv3.WithPrefix(), clientv3.WithCountOnly())
				if err != nil {
					t.Errorf("count: %v", err)
				} else if want := 5000 + g.Header.Revision - base; g.Count != want {
					t.Errorf("%d keys at revision %d, want %d", g.Count, g.Header.Revision, want)
				}
			}
		})
	}
	wg.Wait()
}

// TestOpen_Format1 opens a file that was written before there was a keyCounts.
func TestOpen_Format1(t *testing.T) {
	b, err := os.ReadFile("testdata/format1.db")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	write(t, path, b)
	s := openStore(t, Options{Path: path})
	c := s.Client(t.Context())
	if s.Revision() != 52 {
		t.Errorf("revision %d, want 52", s.Revision())
	}
	g, err := c.Get(t.Context(), "key/", clientv3.WithPrefix())
	if err != nil || g.Count != 30 || string(g.Kvs[0].Value) != "newer" || string(g.Kvs[29].Value) != "value" {
		t.Errorf("keys of the old file: %v, %v", g, err)
	}
	mustPut(t, c, "key/new", "")
	if g, err := c.Get(t.Context(), "key/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil ||
		g.Count != 31 {
		t.Errorf("count with a new key: %v, %v", g, err)
	}
}

func TestCheckFile_WrongKeyCounts(t *testing.T) {
	path := closedStore(t)
	script(t, path, "UPDATE tally SET n = n + 1; INSERT OR IGNORE INTO tally(start, n) VALUES(x'61', 7)")
	if _, err := CheckFile(t.Context(), path); !errors.Is(err, ErrDamaged) {
		t.Errorf("check of a file whose keyCounts is wrong: %v", err)
	}
}
