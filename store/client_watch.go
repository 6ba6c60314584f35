package store

import (
	"context"
	"errors"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// localWatcher is clientv3's Watcher without a connection: each watch is a stream of its own.
type localWatcher struct {
	s       *Store
	mu      sync.Mutex
	streams map[*watchStream]*localWatch
	closed  bool
}

type localWatch struct {
	key    string // which contexts it shares progress requests with
	cancel context.CancelFunc
	done   chan struct{}
}

var _ clientv3.Watcher = (*localWatcher)(nil)

// errWatchOver ends a watch's goroutine after its last answer.
var errWatchOver = errors.New("watch is over")

// Watch starts a watch. It has begun when Watch returns: with no revision given, it sees everything
// from now on.
func (w *localWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	op := clientv3.OpWatch(key, opts...)
	r := &pb.WatchCreateRequest{
		Key:            op.KeyBytes(),
		RangeEnd:       op.RangeBytes(),
		StartRevision:  op.Rev(),
		PrevKv:         op.IsPrevKV(),
		ProgressNotify: op.IsProgressNotify(),
	}
	if op.IsFilterPut() {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if op.IsFilterDelete() {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NODELETE)
	}
	out := make(chan clientv3.WatchResponse, 1)
	md, _ := metadata.FromOutgoingContext(ctx)
	over := func(err error) clientv3.WatchResponse {
		return clientv3.WatchResponse{Header: w.s.header(0), Canceled: true,
			CancelReason: rpctypes.ErrorDesc(toGRPC(err))}
	}
	tctx, end, err := w.s.tasks.begin(ctx)
	if err != nil {
		out <- over(err)
		close(out)
		return out
	}
	wctx, cancel := context.WithCancel(tctx)
	lw := &localWatch{key: streamKey(md), cancel: cancel, done: make(chan struct{})}
	st := w.s.watches.newStream()
	if !w.add(st, lw) { // like clientv3's own
		st.close()
		cancel()
		end()
		close(out)
		return out
	}
	st.create(r)
	go func() {
		defer end()
		defer close(lw.done)
		defer close(out)
		defer func() {
			cancel()
			w.mu.Lock()
			delete(w.streams, st)
			w.mu.Unlock()
			st.close()
		}()
		err := st.run(wctx, func(r *pb.WatchResponse) error { return w.deliver(wctx, out, r, op.IsCreatedNotify()) })
		switch closed := closing(tctx); {
		case errors.Is(err, errWatchOver):
			return
		case closed != nil:
			err = closed
		case wctx.Err() != nil:
			return
		}
		select {
		case out <- over(err):
		default: // the reader has not taken the response before this one either
		}
	}()
	return out
}

// add reports whether the watcher is open, so that its Close will find the watch.
func (w *localWatcher) add(st *watchStream, lw *localWatch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.streams[st] = lw
	return true
}

func (w *localWatcher) deliver(ctx context.Context, out chan<- clientv3.WatchResponse, r *pb.WatchResponse,
	created bool) error {
	if r.Created && !r.Canceled && !created {
		return nil
	}
	resp := clientv3.WatchResponse{
		Header:          r.Header,
		Events:          r.Events,
		CompactRevision: r.CompactRevision,
		Canceled:        r.Canceled,
		Created:         r.Created,
		CancelReason:    r.CancelReason,
	}
	select {
	case out <- resp:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.s.closed:
		return ErrClosed
	}
	if r.Canceled {
		return errWatchOver
	}
	return nil
}

// RequestProgress has the revision sent to the watches whose context carries the same metadata as
// ctx.
func (w *localWatcher) RequestProgress(ctx context.Context) error {
	md, _ := metadata.FromOutgoingContext(ctx)
	key := streamKey(md)
	w.mu.Lock()
	defer w.mu.Unlock()
	for st, lw := range w.streams {
		if lw.key == key {
			st.requestProgress()
		}
	}
	return nil
}

// Close ends all watches and waits for them.
func (w *localWatcher) Close() error {
	w.mu.Lock()
	w.closed = true
	open := make([]*localWatch, 0, len(w.streams))
	for _, lw := range w.streams {
		open = append(open, lw)
	}
	w.mu.Unlock()
	for _, lw := range open {
		lw.cancel()
		<-lw.done
	}
	return nil
}
