package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"math"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// snap is a consistent view of the store: a read transaction, or the writer's own with its changes
// so far.
type snap struct {
	ctx       context.Context
	c         *conn
	rev       int64 // newest revision in view
	compacted int64
	keys      *keyCounts
	values    *valueCache
	keep      bool // what is read may go into versions: not so in the writer, whose reads may be rolled back
}

// span is a range of keys. A nil end is the single key; an empty one is everything from key on.
type span struct{ key, end []byte }

// newSpan reads the wire form, in which no end is the single key and a zero byte is no upper bound.
func newSpan(key, end []byte) span {
	switch {
	case len(end) == 0:
		return span{key, nil}
	case len(end) == 1 && end[0] == 0:
		return span{key, []byte{}}
	}
	return span{key, end}
}

func (r span) single() bool { return r.end == nil }
func (r span) empty() bool  { return len(r.end) > 0 && bytes.Compare(r.key, r.end) >= 0 }

func (r span) contains(key []byte) bool {
	if r.single() {
		return bytes.Equal(r.key, key)
	}
	return bytes.Compare(key, r.key) >= 0 && (len(r.end) == 0 || bytes.Compare(key, r.end) < 0)
}

// row is one version of a key; version zero is a tombstone.
type row struct {
	id, prev, created, version, lease int64
	key, value                        []byte
}

func (r *row) dead() bool { return r.version == 0 }

func (r *row) kv() *mvccpb.KeyValue {
	kv := &mvccpb.KeyValue{}
	r.fill(kv)
	return kv
}

func (r *row) fill(kv *mvccpb.KeyValue) {
	kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease = r.key, r.value, r.created, revOf(r.id),
		r.version, r.lease
}

// rowColumns are what scanRow takes; keyColumns leave the value out, and with it the checksum,
// which covers it.
const (
	rowColumns = "l.id, l.prev, l.created, l.version, l.lease, l.sum, l.value"
	keyColumns = "l.id, l.prev, l.created, l.version, l.lease, NULL, NULL"
)

func scanRow(key []byte, v []driver.Value) (row, error) {
	r := row{
		id:      asInt(v[0]),
		prev:    asInt(v[1]),
		created: asInt(v[2]),
		version: asInt(v[3]),
		lease:   asInt(v[4]),
		key:     key,
		value:   asBytes(v[6]),
	}
	if v[5] != nil && asInt(v[5]) != r.sum() {
		return r, fmt.Errorf("revision %d of key %q does not match its checksum: %w", revOf(r.id), key, ErrDamaged)
	}
	return r, nil
}

// newest finds the newest version of key, tombstones included.
func (sn *snap) newest(key []byte) (r row, ok bool, err error) {
	id, err := sn.c.queryInt("SELECT id FROM cur WHERE key = ?1", blob(key))
	if err != nil || id == 0 {
		return row{}, false, err
	}
	if r, ok, err = sn.version(key, id); err == nil && !ok {
		err = fmt.Errorf("newest version of key %q is gone: %w", key, ErrDamaged)
	}
	return r, ok, err
}

// version finds one version by its id.
func (sn *snap) version(key []byte, id int64) (r row, ok bool, err error) {
	if r, ok := sn.values.get(id); ok {
		return r, true, nil
	}
	err = sn.c.query("SELECT "+rowColumns+" FROM log l WHERE l.id = ?1", func(v []driver.Value) (bool, error) {
		ok = true
		r, err = scanRow(key, v)
		return false, err
	}, id)
	if err == nil && ok && sn.keep {
		sn.values.add(r)
	}
	return r, ok, err
}

// at walks back from r to the version that was the newest at rev. Not ok means the key was not
// there.
func (sn *snap) at(r row, rev int64) (row, bool, error) {
	ok := true
	for ok && revOf(r.id) > rev {
		if r.prev == 0 {
			return row{}, false, nil
		}
		var err error
		if r, ok, err = sn.version(r.key, r.prev); err != nil {
			return row{}, false, err
		}
	}
	return r, ok && !r.dead(), nil
}

// get answers the version of key at rev.
func (sn *snap) get(key []byte, rev int64) (row, bool, error) {
	r, ok, err := sn.newest(key)
	if err != nil || !ok {
		return row{}, false, err
	}
	return sn.at(r, rev)
}

// each calls fn for the keys in r at rev, in order, until fn answers false. With keysOnly the
// values are nil. limit is a hint for SQLite, and zero or less is none.
func (sn *snap) each(r span, rev int64, keysOnly bool, limit int64, fn func(row) (bool, error)) error {
	if r.empty() {
		return nil
	}
	if r.single() {
		got, ok, err := sn.get(r.key, rev)
		if err != nil || !ok {
			return err
		}
		_, err = fn(got)
		return err
	}
	// Keys and where their newest versions are; the versions themselves come from memory or one
	// look-up each. Without values the rows are read along instead, up to where their values begin.
	sql := "SELECT c.id, c.key FROM cur c WHERE c.key >= ?1"
	if keysOnly {
		sql = "SELECT " + keyColumns + ", c.key FROM cur c CROSS JOIN log l ON l.id = c.id WHERE c.key >= ?1"
	}
	args := []driver.Value{blob(r.key)}
	if len(r.end) > 0 {
		sql += " AND c.key < ?2"
		args = append(args, blob(r.end))
	}
	// Keys deleted by now may have been there at an older revision.
	if rev == sn.rev {
		sql += " AND c.dead = 0"
	}
	sql += " ORDER BY c.key"
	if rev == sn.rev && limit > 0 {
		sql += " LIMIT " + map[bool]string{true: "?3", false: "?2"}[len(r.end) > 0]
		args = append(args, limit)
	}
	n := 0
	return sn.c.query(sql, func(v []driver.Value) (bool, error) {
		if n++; n%256 == 0 && sn.ctx.Err() != nil {
			return false, sn.ctx.Err()
		}
		var got row
		var ok bool
		var err error
		if keysOnly {
			got, err = scanRow(asBytes(v[7]), v)
		} else if got, ok, err = sn.version(asBytes(v[1]), asInt(v[0])); err == nil && !ok {
			err = fmt.Errorf("newest version of key %q is gone: %w", v[1], ErrDamaged)
		}
		if err != nil {
			return false, err
		}
		if got, ok, err = sn.at(got, rev); err != nil || !ok {
			return err == nil, err
		}
		if keysOnly {
			got.value = nil
		}
		return fn(got)
	}, args...)
}

// checkRevision refuses revisions that are gone or not there yet and gives the one to read at.
func (sn *snap) checkRevision(rev int64) (int64, error) {
	switch {
	case rev > sn.rev:
		return 0, ErrFutureRevision
	case rev <= 0:
		return sn.rev, nil
	case rev < sn.compacted:
		return 0, ErrCompacted
	}
	return rev, nil
}

// rangeKeys answers a range request. Without withTotal the count is only that of the keys looked
// at, as a stream's chunks need no more.
func (sn *snap) rangeKeys(r *pb.RangeRequest, withTotal bool) (*pb.RangeResponse, error) {
	rev, err := sn.checkRevision(r.Revision)
	if err != nil {
		return nil, err
	}
	keys := newSpan(r.Key, r.RangeEnd)
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: sn.rev}}
	if r.CountOnly {
		resp.Count, err = sn.total(keys, rev)
		return resp, err
	}
	sorted := r.SortOrder != pb.RangeRequest_NONE &&
		!(r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND) ||
		r.SortOrder == pb.RangeRequest_NONE && r.SortTarget != pb.RangeRequest_KEY
	limit := r.Limit
	// etcd takes the limit before it sorts only by an explicit order; a target alone sorts what the
	// limit left.
	if r.SortOrder != pb.RangeRequest_NONE && sorted || filtered(r) {
		limit = 0
	}
	if limit > 0 && limit < math.MaxInt64 {
		limit++
	}
	// etcd answers keys alone from its index, which does not know leases.
	keysOnly := r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE
	var kvs []*mvccpb.KeyValue
	var slab []mvccpb.KeyValue // many at once are less work than one by one
	n := int64(0)
	err = sn.each(keys, rev, keysOnly, limit, func(got row) (bool, error) {
		n++
		if keysOnly {
			got.lease = 0
		}
		if len(slab) == 0 {
			slab = make([]mvccpb.KeyValue, min(n, 32))
		}
		got.fill(&slab[0])
		kvs, slab = append(kvs, &slab[0]), slab[1:]
		return limit <= 0 || n < limit, nil
	})
	if err != nil {
		return nil, err
	}
	resp.Count = n
	if limit > 0 && n == limit {
		if withTotal {
			if resp.Count, err = sn.total(keys, rev); err != nil {
				return nil, err
			}
		}
		if withTotal && int64(len(kvs)) > r.Limit {
			// The next page starts behind the last key: keep its count, so that paging counts once.
			next := append(bytes.Clone(kvs[r.Limit-1].Key), 0)
			sn.keys.pin(span{next, keys.end}, rev, resp.Count-r.Limit)
		}
	}
	if filtered(r) {
		kvs = filterKVs(kvs, r)
	}
	if sorted {
		sortKVs(kvs, r)
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs = kvs[:r.Limit]
		resp.More = true
	}
	if r.KeysOnly {
		for _, kv := range kvs {
			kv.Value = nil
		}
	}
	resp.Kvs = kvs
	return resp, nil
}

func filtered(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

func filterKVs(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) []*mvccpb.KeyValue {
	kept := kvs[:0]
	for _, kv := range kvs {
		if r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
			kv.ModRevision < r.MinModRevision ||
			r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision ||
			kv.CreateRevision < r.MinCreateRevision {
			continue
		}
		kept = append(kept, kv)
	}
	return kept
}

type sortedKVs struct {
	kvs  []*mvccpb.KeyValue
	less func(a, b *mvccpb.KeyValue) bool
}

func (s sortedKVs) Len() int           { return len(s.kvs) }
func (s sortedKVs) Swap(i, j int)      { s.kvs[i], s.kvs[j] = s.kvs[j], s.kvs[i] }
func (s sortedKVs) Less(i, j int) bool { return s.less(s.kvs[i], s.kvs[j]) }

func sortKVs(kvs []*mvccpb.KeyValue, r *pb.RangeRequest) {
	s := sortedKVs{kvs: kvs}
	switch r.SortTarget {
	case pb.RangeRequest_VERSION:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.Version < b.Version }
	case pb.RangeRequest_CREATE:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.CreateRevision < b.CreateRevision }
	case pb.RangeRequest_MOD:
		s.less = func(a, b *mvccpb.KeyValue) bool { return a.ModRevision < b.ModRevision }
	case pb.RangeRequest_VALUE:
		s.less = func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Value, b.Value) < 0 }
	default:
		s.less = func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Key, b.Key) < 0 }
	}
	// Reversing the comparison rather than the result keeps ties in the order etcd has them.
	if r.SortOrder == pb.RangeRequest_DESCEND {
		sort.Sort(sort.Reverse(s))
		return
	}
	sort.Sort(s)
}
