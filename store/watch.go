package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// invalidWatchID means no watch; in a progress response, all watches of the stream.
const invalidWatchID = -1

// Reasons etcd gives for refusing a watch.
const (
	reasonEmptyRange  = "mvcc: watcher range is empty"
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

// watcher is one watch of a stream.
type watcher struct {
	stream *watchStream
	id     int64
	keys   span
	start  int64 // revision asked for
	from   int64 // first revision to see

	prevKV, progress, fragment, noPut, noDelete bool

	// Guarded by hub.mu.
	attached bool // fed by the hub
	fresh    []*mvccpb.Event

	// Guarded by stream.mu.
	queue  []*mvccpb.Event
	queued int   // bytes in queue
	rev    int64 // revision the queue reaches
	ready  bool  // in stream.ready
	quiet  bool  // nothing was sent since the last progress notice
	gone   bool

	// next is the first revision to read from the file. Guarded by stream.mu while attached, else
	// the stream's own.
	next int64
}

func (w *watcher) wants(t mvccpb.Event_EventType) bool {
	return !(t == mvccpb.Event_PUT && w.noPut || t == mvccpb.Event_DELETE && w.noDelete)
}

// watches serves watch streams: new changes come from the hub, older ones from the file.
type watches struct {
	member
	hub           *hub
	reads         *readers
	revs          *revisions
	metrics       *metrics
	progressEvery time.Duration
	maxMessage    int
	closed        <-chan struct{} // when the store closes
}

// watchStream is a set of watches whose responses go to one receiver. One goroutine, in run, sends
// them.
type watchStream struct {
	s        *watches
	mu       sync.Mutex
	woken    chan struct{}
	watchers map[int64]*watcher
	nextID   int64
	ready    []*watcher
	ctrl     []*pb.WatchResponse
	notify   bool // progress was asked for
	closed   bool // nothing is sent any more, so no watch may start
}

func (s *watches) newStream() *watchStream {
	st := &watchStream{s: s, woken: make(chan struct{}, 1), watchers: map[int64]*watcher{}}
	s.hub.mu.Lock()
	s.hub.streams[st] = struct{}{}
	s.hub.mu.Unlock()
	return st
}

func (st *watchStream) signal() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

// markReady needs st.mu.
func (st *watchStream) markReady(w *watcher) {
	if !w.ready && !w.gone {
		w.ready = true
		st.ready = append(st.ready, w)
	}
	st.signal()
}

func (st *watchStream) control(r *pb.WatchResponse) {
	st.ctrl = append(st.ctrl, r)
	st.signal()
}

// create starts a watch. The answer, also a refusal, comes over the stream.
func (st *watchStream) create(r *pb.WatchCreateRequest) {
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		// A request that was received while the stream ended. The hub would keep its watch for
		// ever.
		return
	}
	refuse := func(reason string) {
		st.control(&pb.WatchResponse{
			Header:       st.s.header(h.rev),
			WatchId:      invalidWatchID,
			Created:      true,
			Canceled:     true,
			CancelReason: reason,
		})
	}
	key := r.Key
	if len(key) == 0 {
		key = []byte{0}
	}
	w := &watcher{
		stream:   st,
		keys:     newSpan(key, r.RangeEnd),
		start:    r.StartRevision,
		prevKV:   r.PrevKv,
		progress: r.ProgressNotify,
		fragment: r.Fragment,
		id:       r.WatchId,
	}
	for _, f := range r.Filters {
		w.noPut = w.noPut || f == pb.WatchCreateRequest_NOPUT
		w.noDelete = w.noDelete || f == pb.WatchCreateRequest_NODELETE
	}
	switch {
	case r.StartRevision < 0:
		refuse(rpctypes.ErrCompacted.Error())
		return
	case w.keys.empty():
		refuse(reasonEmptyRange)
		return
	case w.id == 0:
		for st.watchers[st.nextID] != nil {
			st.nextID++
		}
		w.id = st.nextID
		st.nextID++
	case st.watchers[w.id] != nil:
		refuse(reasonDuplicateID)
		return
	}
	st.watchers[w.id] = w
	st.s.metrics.watchers.Inc()
	st.control(&pb.WatchResponse{Header: st.s.header(h.rev), WatchId: w.id, Created: true})
	if w.start == 0 || w.start > h.rev {
		w.from = max(w.start, h.rev+1)
		w.rev = h.rev
		h.attach(w)
		return
	}
	w.from, w.next = w.start, w.start
	st.markReady(w)
}

func (st *watchStream) cancel(id int64) {
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if w := st.watchers[id]; w != nil {
		st.removeLocked(w)
		st.control(&pb.WatchResponse{Header: st.s.header(h.rev), WatchId: id, Canceled: true})
	}
}

// removeLocked needs hub.mu and st.mu.
func (st *watchStream) removeLocked(w *watcher) {
	st.s.hub.detach(w)
	w.gone, w.queue, w.queued = true, nil, 0
	delete(st.watchers, w.id)
	st.s.metrics.watchers.Dec()
}

func (st *watchStream) requestProgress() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.notify = true
	st.signal()
}

// close frees the stream's watches. The goroutine in run must have ended.
func (st *watchStream) close() {
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, w := range st.watchers {
		st.removeLocked(w)
	}
	st.closed = true
	delete(h.streams, st)
}

// run sends what the stream's watches have until ctx or the store ends, or send fails.
func (st *watchStream) run(ctx context.Context, send func(*pb.WatchResponse) error) error {
	var ticks <-chan time.Time
	for {
		st.mu.Lock()
		ctrl, ready := st.ctrl, st.ready
		st.ctrl, st.ready = nil, nil
		for _, w := range ready {
			w.ready = false
		}
		if ticks == nil && len(ctrl) > 0 {
			for _, w := range st.watchers {
				if w.progress {
					t := time.NewTicker(st.s.progressEvery)
					defer t.Stop()
					ticks = t.C
					break
				}
			}
		}
		st.mu.Unlock()
		for _, r := range ctrl {
			if err := send(r); err != nil {
				return err
			}
		}
		for _, w := range ready {
			if err := st.serve(ctx, w, send); err != nil {
				return err
			}
		}
		if r := st.progressAll(); r != nil {
			if err := send(r); err != nil {
				return err
			}
		}
		if len(ctrl) > 0 || len(ready) > 0 {
			continue
		}
		select {
		case <-st.woken:
		case <-ticks:
			for _, r := range st.progressEach() {
				if err := send(r); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-st.s.closed:
			return ErrClosed
		}
	}
}

// progressAll answers a request for progress once every watch of the stream has been sent all there
// is.
func (st *watchStream) progressAll() *pb.WatchResponse {
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.notify || len(st.ready) > 0 || len(st.ctrl) > 0 {
		return nil
	}
	st.notify = false
	for _, w := range st.watchers {
		if h.rev < w.start {
			return nil
		}
	}
	return &pb.WatchResponse{Header: st.s.header(h.rev), WatchId: invalidWatchID}
}

// progressEach notes progress to the watches that asked for it and had nothing sent for a while.
func (st *watchStream) progressEach() []*pb.WatchResponse {
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	var out []*pb.WatchResponse
	for _, w := range st.watchers {
		if !w.progress || w.ready {
			continue
		}
		if w.quiet && h.rev >= w.start {
			out = append(out, &pb.WatchResponse{Header: st.s.header(h.rev), WatchId: w.id})
		}
		w.quiet = true
	}
	return out
}

// serve sends what one watch has, from memory or the file.
func (st *watchStream) serve(ctx context.Context, w *watcher, send func(*pb.WatchResponse) error) error {
	st.s.hub.mu.Lock()
	attached := w.attached
	st.s.hub.mu.Unlock()
	st.mu.Lock()
	events, rev, gone, next := w.queue, w.rev, w.gone, w.next
	w.queue, w.queued = nil, 0
	if len(events) > 0 {
		w.quiet = false
	}
	st.mu.Unlock()
	if gone {
		return nil
	}
	if len(events) > 0 {
		// Also when the watch fell behind since: these come before what it reads from the file.
		return st.deliver(w, events, rev, send)
	}
	if attached {
		return nil
	}
	return st.catchUp(ctx, w, next, send)
}

func (st *watchStream) deliver(w *watcher, events []*mvccpb.Event, rev int64,
	send func(*pb.WatchResponse) error) error {
	r := &pb.WatchResponse{Header: st.s.header(rev), WatchId: w.id, Events: events}
	limit := st.s.maxMessage
	if !w.fragment || len(events) < 2 || proto.Size(r) < limit {
		return send(r)
	}
	for len(events) > 0 {
		part := &pb.WatchResponse{Header: r.Header, WatchId: w.id, Fragment: true}
		for size := 0; len(events) > 0; events = events[1:] {
			n := proto.Size(events[0]) + 8
			if len(part.Events) > 0 && size+n >= limit {
				break
			}
			part.Events = append(part.Events, events[0])
			size += n
		}
		part.Fragment = len(events) > 0
		if err := send(part); err != nil {
			return err
		}
	}
	return nil
}

const (
	catchUpEvents = 1000
	catchUpBytes  = 1 << 20
)

// catchUp reads a piece of history for a watch that is behind, sends it, and gives the watch back
// to the hub when there is no more.
func (st *watchStream) catchUp(ctx context.Context, w *watcher, from int64, send func(*pb.WatchResponse) error) error {
	events, upTo, rev, err := st.s.history(ctx, w, from)
	if errors.Is(err, ErrCompacted) {
		st.s.hub.mu.Lock()
		st.mu.Lock()
		gone := w.gone
		if !gone {
			st.removeLocked(w)
		}
		st.mu.Unlock()
		st.s.hub.mu.Unlock()
		if gone {
			return nil
		}
		return send(&pb.WatchResponse{
			Header:          st.s.header(0),
			WatchId:         w.id,
			Canceled:        true,
			CompactRevision: st.s.revs.compacted.Load(),
		})
	}
	if err != nil {
		return err
	}
	if len(events) > 0 {
		if err := st.deliver(w, events, rev, send); err != nil {
			return err
		}
	}
	h := st.s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if w.gone {
		return nil
	}
	if len(events) > 0 {
		w.quiet = false
	}
	w.next = upTo + 1
	if w.next > h.rev {
		// The file may be ahead of the hub by what is committed and not handed out yet.
		w.from, w.rev = w.next, h.rev
		h.attach(w)
		return nil
	}
	st.markReady(w)
	return nil
}

// history reads the events w wants from revision from on, up to a limit but never half a revision.
// upTo is the last revision that is covered, rev the newest there was.
func (s *watches) history(ctx context.Context, w *watcher, from int64) (events []*mvccpb.Event, upTo, rev int64,
	err error) {
	err = s.reads.view(ctx, func(sn *snap) error {
		if from < sn.compacted {
			return ErrCompacted
		}
		rev, upTo = sn.rev, sn.rev
		sql := "SELECT " + rowColumns + ", l.key FROM log l WHERE l.id >= ?1"
		args := []driver.Value{idOf(from, 0), blob(w.keys.key)}
		switch {
		case w.keys.single():
			sql += " AND l.key = ?2"
		case len(w.keys.end) == 0:
			sql += " AND l.key >= ?2"
		default:
			sql += " AND l.key >= ?2 AND l.key < ?3"
			args = append(args, blob(w.keys.end))
		}
		size := 0
		return sn.c.query(sql+" ORDER BY l.id", func(v []driver.Value) (bool, error) {
			r, err := scanRow(asBytes(v[7]), v)
			if err != nil {
				return false, err
			}
			if n := len(events); n > 0 && (n >= catchUpEvents || size >= catchUpBytes) &&
				revOf(r.id) > events[n-1].Kv.ModRevision {
				upTo = events[n-1].Kv.ModRevision
				return false, nil
			}
			ev, err := sn.event(w, &r)
			if err != nil || ev == nil {
				return err == nil, err
			}
			events = append(events, ev)
			size += len(r.key) + len(r.value)
			return true, nil
		}, args...)
	})
	return events, upTo, rev, err
}

// event makes the event of a row, nil when w does not want it.
func (sn *snap) event(w *watcher, r *row) (*mvccpb.Event, error) {
	ev := &mvccpb.Event{Kv: r.kv()}
	if r.dead() {
		ev.Type = mvccpb.Event_DELETE
	}
	if !w.wants(ev.Type) {
		return nil, nil
	}
	if !w.prevKV || r.prev == 0 || r.version == 1 || revOf(r.id)-1 < sn.compacted {
		return ev, nil
	}
	prev, ok, err := sn.version(bytes.Clone(r.key), r.prev)
	if err != nil {
		return nil, err
	}
	if ok {
		if prev, ok, err = sn.at(prev, revOf(r.id)-1); err != nil {
			return nil, err
		}
	}
	if ok {
		ev.PrevKv = prev.kv()
	}
	return ev, nil
}
