package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zaptest"

	"github.com/mote-dev/mote/store"
)

// running opens a store in this process and gives its end as a function.
func running(t *testing.T, o store.Options) (*store.Store, *clientv3.Client, func()) {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	return s, s.Client(ctx), func() {
		cancel()
		if err := errors.Join(<-ran, s.Close()); err != nil {
			t.Error(err)
		}
	}
}

func residentMB(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return kb / 1024
		}
	}
	return 0
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// longestPause is how long writers may wait for the store's own housekeeping.
const longestPause = 50 * time.Millisecond

// TestScale fills a store with many keys of 1 KiB and states how it starts, reads and lists then,
// how it bears churn with compaction, and how large file and process are. MOTE_TEST_KEYS says how
// many keys.
func TestScale(t *testing.T) {
	n := rounds(t, "MOTE_TEST_KEYS", 20_000)
	path := filepath.Join(t.TempDir(), "state.db")
	_, c, stop := running(t, store.Options{Path: path})
	val := make([]byte, 1024)
	for i := range val {
		val[i] = byte('a' + i%26)
	}
	key := func(i int) string { return fmt.Sprintf("/registry/pods/ns-%03d/pod-%07d", i%100, i) }
	start := time.Now()
	for i := 0; i < n; i += 100 {
		var ops []clientv3.Op
		for j := i; j < min(i+100, n); j++ {
			ops = append(ops, clientv3.OpPut(key(j), string(val)))
		}
		if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("filled with %d keys in %s", n, time.Since(start).Round(time.Millisecond))
	stop()

	before := residentMB(t)
	start = time.Now()
	// Whatever holds writers longer than it may is logged with its parts.
	s, c, stop := running(t, store.Options{Path: path, SlowAfter: longestPause, Logger: zaptest.NewLogger(t)})
	t.Logf("open took %s; file %d MB", time.Since(start).Round(time.Millisecond), size(t, path)>>20)
	var gets, pages []time.Duration
	for range 2000 {
		start := time.Now()
		if g, err := c.Get(t.Context(), key(rand.IntN(n))); err != nil || g.Count != 1 {
			t.Fatalf("get: %v", err)
		}
		gets = append(gets, time.Since(start))
	}
	seen, from := 0, "/registry/pods/"
	end := clientv3.GetPrefixRangeEnd(from)
	rev := int64(0)
	start = time.Now()
	for more := true; more; {
		start := time.Now()
		g, err := c.Get(t.Context(), from, clientv3.WithRange(end), clientv3.WithLimit(500), clientv3.WithRev(rev))
		if err != nil {
			t.Fatal(err)
		}
		if int(g.Count) != n-seen {
			t.Fatalf("a page says %d keys are left, want %d", g.Count, n-seen)
		}
		pages = append(pages, time.Since(start))
		seen += len(g.Kvs)
		rev, more = g.Header.Revision, g.More
		from = string(g.Kvs[len(g.Kvs)-1].Key) + "\x00"
	}
	if seen != n {
		t.Errorf("pages gave %d keys, want %d", seen, n)
	}
	t.Logf("get: median %s; page of 500: first %s, median %s, all in %s; resident %d MB, %d MB before open",
		median(gets), pages[0], median(pages[1:]), time.Since(start).Round(time.Millisecond), residentMB(t), before)

	// Churn: every key of a tenth is written ten times, with a compaction now and then, as the API
	// server does it.
	live := size(t, path)
	largest, slowest := live, time.Duration(0)
	for range 10 {
		for i := 0; i < n/10; i += 20 {
			var ops []clientv3.Op
			for j := i; j < i+20; j++ {
				ops = append(ops, clientv3.OpPut(key(j), string(val)))
			}
			start := time.Now()
			if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(start))
		}
		if _, err := c.Compact(t.Context(), s.Revision()); err != nil {
			t.Fatal(err)
		}
		largest = max(largest, size(t, path))
	}
	t.Logf(
		"churn of as many writes as keys: file at most %.2fx of what it was, slowest write of 20 keys %s (compaction runs meanwhile)",
		float64(largest)/float64(live), slowest)
	if largest > 3*live+(32<<20) {
		t.Errorf("file grew from %d to %d bytes", live, largest)
	}
	if _, err := c.Delete(t.Context(), "/registry/pods/ns-00", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(t.Context(), s.Revision(), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if _, err := c.Defragment(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("a tenth deleted, compacted and given back in %s: file %d MB", time.Since(start).Round(time.Millisecond),
		size(t, path)>>20)
	stop()
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	n := int64(0)
	for _, p := range []string{path, path + "-wal"} {
		if st, err := os.Stat(p); err == nil {
			n += st.Size()
		}
	}
	return n
}
