package store

import (
	"container/list"
	"sync"
)

// valueCache keeps recent versions of keys in memory, up to a number of bytes. A version never
// changes, and its id never means another one once it is committed, so nothing here can be out of
// date. A nil cache keeps nothing.
type valueCache struct {
	mu    sync.Mutex
	limit int64
	bytes int64
	byID  map[int64]*list.Element
	used  list.List // of row, the most recently used first
}

// rowOverhead is about what a row costs here beyond its key and value.
const rowOverhead = 240

func newValueCache(limit int64) *valueCache {
	return &valueCache{limit: limit, byID: map[int64]*list.Element{}}
}

func rowBytes(r *row) int64 { return int64(len(r.key)+len(r.value)) + rowOverhead }

func (vc *valueCache) get(id int64) (row, bool) {
	if vc == nil {
		return row{}, false
	}
	vc.mu.Lock()
	defer vc.mu.Unlock()
	e, ok := vc.byID[id]
	if !ok {
		return row{}, false
	}
	vc.used.MoveToFront(e)
	return e.Value.(row), true
}

// add takes a committed version.
func (vc *valueCache) add(r row) {
	if vc == nil || rowBytes(&r) > vc.limit/8 {
		return
	}
	vc.mu.Lock()
	defer vc.mu.Unlock()
	if _, ok := vc.byID[r.id]; ok {
		return
	}
	vc.byID[r.id] = vc.used.PushFront(r)
	vc.bytes += rowBytes(&r)
	for vc.bytes > vc.limit {
		last := vc.used.Back()
		old := vc.used.Remove(last).(row)
		delete(vc.byID, old.id)
		vc.bytes -= rowBytes(&old)
	}
}
