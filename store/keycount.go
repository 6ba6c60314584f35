package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
)

// keyCounts holds the number of keys in each of many ranges of the key space. Counting is a scan
// otherwise, and every first page of a list and every object-count metric asks for a count. A
// request adds up the ranges that lie wholly inside it, and scans only the two at its ends. Ranges
// are split and merged to hold some hundred keys each.
//
// The file has the counts of an older revision, and log has every creation and deletion since: a
// key's first version and its tombstone. So the counts are saved before compaction deletes any of
// these, and from time to time. Only the writer changes them.
type keyCounts struct {
	mu     sync.Mutex
	rev    int64
	starts [][]byte // where the ranges begin, in order; the first is nil
	n      []int64
	// recent are the creations and deletions of the revisions after recentFrom, for readers of
	// older snapshots.
	recent     []keyDelta
	recentFrom int64
	// pinned holds counts at one revision, for the pages of a list.
	pinned map[pinnedSpan]int64

	// The writer's own.
	unsaved map[string]struct{} // starts of ranges that differ from the file
	deltas  int                 // creations and deletions since they were saved
	saved   int64               // revision of what the file has
	large   bool                // a range is too large
}

// keyDelta is a key that came, or with -1 went.
type keyDelta struct {
	rev, d int64
	key    []byte
}

type pinnedSpan struct {
	key, end string
	open     bool
	rev      int64
}

const (
	keysPerRange     = 512 // a range of twice as many is split, two with half as many together are merged
	maxRecent        = 8192
	maxPinnedCounts  = 256
	pinWorth         = 512 // counting fewer keys than this costs less than remembering
	maxUnsavedDeltas = 20_000
)

func (r span) pin(rev int64) pinnedSpan {
	return pinnedSpan{string(r.key), string(r.end), r.end != nil, rev}
}

func newKeyCounts() *keyCounts {
	return &keyCounts{
		starts:  [][]byte{nil},
		n:       []int64{0},
		pinned:  map[pinnedSpan]int64{},
		unsaved: map[string]struct{}{},
	}
}

// loadKeyCounts reads the file's keyCounts and adds what the log has since.
func loadKeyCounts(ctx context.Context, c *conn, saved int64) (*keyCounts, error) {
	t := newKeyCounts()
	t.saved = saved
	err := c.query("SELECT start, n FROM tally ORDER BY start", func(v []driver.Value) (bool, error) {
		if start := asBytes(v[0]); len(start) == 0 {
			t.n[0] = asInt(v[1])
		} else {
			t.starts, t.n = append(t.starts, start), append(t.n, asInt(v[1]))
		}
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read key counts: %w", fault(err))
	}
	err = c.queryContext(ctx, "SELECT version, key FROM log WHERE id > ?1 AND version IN (0, 1)",
		func(v []driver.Value) (bool, error) {
			t.add(asBytes(v[1]), deltaOf(asInt(v[0])))
			return true, nil
		}, lastID(saved))
	if err != nil {
		return nil, fmt.Errorf("bring key counts up to date: %w", fault(err))
	}
	return t, nil
}

// deltaOf is what a row of a version does to the number of keys.
func deltaOf(version int64) int64 {
	switch version {
	case 0:
		return -1
	case 1:
		return 1
	}
	return 0
}

// buildKeyCounts counts all keys, for files written before keyCounts existed.
func buildKeyCounts(c *conn) error {
	t := newKeyCounts()
	n := int64(0)
	if err := c.query("SELECT key FROM cur WHERE dead = 0 ORDER BY key", func(v []driver.Value) (bool, error) {
		if n++; n%keysPerRange == 0 {
			t.starts, t.n = append(t.starts, asBytes(v[0])), append(t.n, 0)
		}
		t.n[len(t.n)-1]++
		return true, nil
	}); err != nil {
		return err
	}
	for i, start := range t.starts {
		if err := c.exec("INSERT INTO tally(start, n) VALUES(?1, ?2)", emptyBlob(start), t.n[i]); err != nil {
			return err
		}
	}
	newest, err := c.queryInt("SELECT max(id) FROM log")
	if err != nil {
		return err
	}
	return c.exec("INSERT INTO meta(name, n) VALUES(?1, ?2)", metaCounted, revOf(newest))
}

// emptyBlob binds bytes for a column that is not NULL.
func emptyBlob(b []byte) driver.Value {
	if b == nil {
		return []byte{}
	}
	return b
}

// at returns the index of the range that contains key.
func (t *keyCounts) at(key []byte) int {
	return sort.Search(len(t.starts)-1, func(i int) bool { return bytes.Compare(t.starts[i+1], key) > 0 })
}

func (t *keyCounts) add(key []byte, d int64) {
	i := t.at(key)
	t.n[i] += d
	t.unsaved[string(t.starts[i])] = struct{}{}
	t.deltas++
	t.large = t.large || t.n[i] > 2*keysPerRange
	if i > 0 && t.n[i]+t.n[i-1] < keysPerRange/2 {
		t.unsaved[string(t.starts[i-1])] = struct{}{}
		t.n[i-1] += t.n[i]
		t.starts, t.n = slices.Delete(t.starts, i, i+1), slices.Delete(t.n, i, i+1)
	}
}

// advance takes the changes that lead to rev.
func (t *keyCounts) advance(changes []change, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range changes {
		ev := changes[i].event
		if d := deltaOf(ev.Kv.Version); d != 0 {
			t.add(ev.Kv.Key, d)
			t.recent = append(t.recent, keyDelta{ev.Kv.ModRevision, d, ev.Kv.Key})
		}
	}
	t.rev = rev
	if len(t.recent) > 2*maxRecent {
		drop := len(t.recent) - maxRecent
		t.recentFrom = t.recent[drop-1].rev
		t.recent = append(t.recent[:0:0], t.recent[drop:]...)
	}
}

// split halves ranges that have become too large. c must be at t.rev.
func (t *keyCounts) split(c *conn) error {
	for i := 0; t.large && i < len(t.n); i++ {
		for t.n[i] > 2*keysPerRange {
			keys := span{key: t.starts[i], end: []byte{}}
			if i+1 < len(t.starts) {
				keys.end = t.starts[i+1]
			}
			var mid []byte
			where, args := liveIn(keys)
			if err := c.query("SELECT key FROM cur WHERE "+where+fmt.Sprintf(" ORDER BY key LIMIT 1 OFFSET %d",
				keysPerRange), func(v []driver.Value) (bool, error) {
				mid = asBytes(v[0])
				return false, nil
			}, args...); err != nil {
				return fmt.Errorf("split a range of keys: %w", fault(err))
			}
			if mid == nil {
				return fmt.Errorf("a range counted as %d keys has fewer: %w", t.n[i], ErrDamaged)
			}
			t.mu.Lock()
			t.starts = slices.Insert(t.starts, i+1, mid)
			t.n = slices.Insert(t.n, i+1, t.n[i]-keysPerRange)
			t.n[i] = keysPerRange
			t.mu.Unlock()
			t.unsaved[string(keys.key)], t.unsaved[string(mid)] = struct{}{}, struct{}{}
			i++
		}
	}
	t.large = false
	return nil
}

// liveIn is the condition for keys in r that are there.
func liveIn(r span) (string, []driver.Value) {
	where, args := "dead = 0", []driver.Value(nil)
	if len(r.key) > 0 {
		args = append(args, blob(r.key))
		where += fmt.Sprintf(" AND key >= ?%d", len(args))
	}
	if len(r.end) > 0 {
		args = append(args, blob(r.end))
		where += fmt.Sprintf(" AND key < ?%d", len(args))
	}
	return where, args
}

// save writes the counts that the file lacks. They are those before tx's own batch.
func (t *keyCounts) save(tx *writeTx) error {
	for start := range t.unsaved {
		i := t.at([]byte(start))
		var err error
		if string(t.starts[i]) == start {
			err = tx.exec("INSERT OR REPLACE INTO tally(start, n) VALUES(?1, ?2)", emptyBlob(t.starts[i]), t.n[i])
		} else {
			err = tx.exec("DELETE FROM tally WHERE start = ?1", []byte(start))
		}
		if err != nil {
			return err
		}
	}
	tx.counted = true
	tx.wrote = true
	return setMeta(tx.c, metaCounted, t.rev)
}

// saveDone is called when the transaction with save is on disk, before advance.
func (t *keyCounts) saveDone() {
	clear(t.unsaved)
	t.deltas, t.saved = 0, t.rev
}

func (t *keyCounts) pin(r span, rev, n int64) {
	if n < pinWorth {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.pinned) >= maxPinnedCounts {
		for k := range t.pinned { // any one: the map's order is as good as a clock here
			delete(t.pinned, k)
			break
		}
	}
	t.pinned[r.pin(rev)] = n
}

func (t *keyCounts) pinnedAt(r span, rev int64) (int64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.pinned[r.pin(rev)]
	return n, ok
}

// errCountsTooNew means that a snapshot is so old that the keyCounts cannot tell its counts any
// more.
var errCountsTooNew = errors.New("keyCounts is too new")

// whole adds up the ranges that lie wholly in r. Together they are inner; at is the revision of the
// sum, which is not newer than rev. There are none when inner is empty.
func (t *keyCounts) whole(r span, rev int64) (inner span, n, at int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, j := t.at(r.key), len(t.starts)-1
	if len(r.end) > 0 {
		j = t.at(r.end)
	}
	if j <= i+1 {
		return span{}, 0, t.rev, nil
	}
	inner = span{key: t.starts[i+1], end: t.starts[j]}
	for _, k := range t.n[i+1 : j] {
		n += k
	}
	if rev >= t.rev {
		return inner, n, t.rev, nil
	}
	if rev < t.recentFrom {
		return span{}, 0, 0, errCountsTooNew
	}
	for k := len(t.recent) - 1; k >= 0 && t.recent[k].rev > rev; k-- {
		if inner.contains(t.recent[k].key) {
			n -= t.recent[k].d
		}
	}
	return inner, n, rev, nil
}

// total counts the keys in r at rev.
func (sn *snap) total(r span, rev int64) (int64, error) {
	if r.empty() {
		return 0, nil
	}
	if r.single() {
		_, ok, err := sn.get(r.key, rev)
		if ok {
			return 1, err
		}
		return 0, err
	}
	if n, ok := sn.keys.pinnedAt(r, rev); ok {
		return n, nil
	}
	n, err := sn.totalNow(r)
	if err != nil || rev == sn.rev {
		return n, err
	}
	if sn.rev-rev > max(n, keysPerRange) {
		// So much happened since that looking at the keys is less work.
		n = 0
		err := sn.each(r, rev, true, 0, func(row) (bool, error) { n++; return true, nil })
		return n, err
	}
	since, err := sn.deltaOf(r, rev)
	return n - since, err
}

// totalNow counts the keys in r at the snapshot's revision.
func (sn *snap) totalNow(r span) (int64, error) {
	inner, n, at, err := sn.keys.whole(r, sn.rev)
	if errors.Is(err, errCountsTooNew) || err == nil && inner.key == nil {
		return sn.scan(r)
	}
	if err != nil {
		return 0, err
	}
	if at < sn.rev {
		// What is committed and not published yet, or in the writer the batch so far.
		since, err := sn.deltaOf(inner, at)
		if err != nil {
			return 0, err
		}
		n += since
	}
	for _, end := range []span{{r.key, inner.key}, {inner.end, r.end}} {
		k, err := sn.scan(end)
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, nil
}

func (sn *snap) scan(r span) (int64, error) {
	if r.empty() {
		return 0, nil
	}
	where, args := liveIn(r)
	return sn.c.queryInt("SELECT count(*) FROM cur WHERE "+where, args...)
}

// deltaOf is how many more keys of r there are than at rev.
func (sn *snap) deltaOf(r span, rev int64) (n int64, err error) {
	err = sn.c.query("SELECT version, key FROM log WHERE id > ?1 AND version IN (0, 1)",
		func(v []driver.Value) (bool, error) {
			if r.contains(asBytes(v[1])) {
				n += deltaOf(asInt(v[0]))
			}
			return true, nil
		}, lastID(rev))
	return n, err
}
