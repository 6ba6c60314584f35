package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"math"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/mote-dev/mote/internal/retry"
)

// grpcOverhead is what etcd adds to the request limit for the wire.
const grpcOverhead = 512 << 10

// damageLog reports damage once: clients only see etcd's code for it, without the cause, and read
// again and again.
type damageLog struct {
	mu       sync.Mutex
	failures retry.Failures
}

func (d *damageLog) news(err error) bool {
	if !errors.Is(err, ErrDamaged) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures.News(err)
}

// finish measures a request, and logs it if it was slow or found damage.
func (s *Store) finish(op string, key []byte, start time.Time, err error) {
	d := time.Since(start)
	s.metrics.observe(op, d, err)
	if err != nil && s.damage.news(err) {
		s.log.Error("request found damage", zap.String("op", op), zap.ByteString("key", key), zap.Error(err))
	}
	if d > s.opts.SlowAfter {
		s.log.Warn("request is slow", zap.String("op", op), zap.ByteString("key", key), zap.Duration("took", d),
			zap.Error(err))
	}
}

func (s *Store) rangeKeys(ctx context.Context, r *pb.RangeRequest) (resp *pb.RangeResponse, err error) {
	defer func(start time.Time) { s.finish("Range", r.Key, start, err) }(time.Now())
	if err := checkRange(r); err != nil {
		return nil, err
	}
	if len(r.RangeEnd) == 0 && r.Revision == 0 && !r.CountOnly && !r.KeysOnly && !filtered(r) {
		return s.getNow(ctx, r.Key)
	}
	err = s.reads.viewOf(ctx, newSpan(r.Key, r.RangeEnd), func(sn *snap) (err error) {
		resp, err = sn.rangeKeys(r, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	resp.Header = s.header(resp.Header.Revision)
	return resp, nil
}

// getNow answers the most common read, one key as it is now, with one statement, which is a
// snapshot of its own.
func (s *Store) getNow(ctx context.Context, key []byte) (*pb.RangeResponse, error) {
	top, err := s.reads.prepare(ctx, span{key: key})
	if err != nil {
		return nil, err
	}
	c, err := s.reads.take(ctx)
	if err != nil {
		return nil, err
	}
	defer s.reads.put(c)
	var newest, id int64
	if err := c.query("SELECT m, c.id FROM (SELECT max(id) AS m FROM log) LEFT JOIN cur c ON c.key = ?1",
		func(v []driver.Value) (bool, error) {
			newest, id = asInt(v[0]), asInt(v[1])
			return false, nil
		}, blob(key)); err != nil {
		return nil, fault(err)
	}
	resp := &pb.RangeResponse{Header: s.header(max(s.revs.of(newest), top))}
	if id == 0 {
		return resp, nil
	}
	sn := &snap{
		c:      c,
		ctx:    ctx,
		values: s.reads.values,
		keep:   true,
	}
	got, ok, err := sn.version(key, id)
	switch {
	case err != nil:
		return nil, fault(err)
	case !ok:
		// Overwritten and swept since the first statement: then there is a newer one.
		err := s.reads.viewOn(ctx, c, top, func(sn *snap) (err error) {
			resp, err = sn.rangeKeys(&pb.RangeRequest{Key: key}, true)
			return err
		})
		if err != nil {
			return nil, err
		}
		resp.Header = s.header(resp.Header.Revision)
	case !got.dead():
		resp.Kvs, resp.Count = []*mvccpb.KeyValue{got.kv()}, 1
	}
	return resp, nil
}

func (s *Store) checkSize(m proto.Message) (int, error) {
	n := proto.Size(m)
	if n > s.opts.MaxRequestBytes {
		return n, ErrTooLarge
	}
	if s.opts.MaxBytes == 0 {
		return n, nil
	}
	size, err := s.fileBytes()
	if err == nil && size > s.opts.MaxBytes {
		s.alarm.Store(true)
		err = ErrNoSpace
	}
	return n, err
}

func (s *Store) put(ctx context.Context, r *pb.PutRequest) (_ *pb.PutResponse, err error) {
	defer func(start time.Time) { s.finish("Put", r.Key, start, err) }(time.Now())
	if err := checkPut(r); err != nil {
		return nil, err
	}
	size, err := s.checkSize(r)
	if err != nil {
		return nil, err
	}
	// The writer's until the proposal is done, and for good if the caller gives up before.
	var resp *pb.PutResponse
	err = s.writes.submit(&proposal{
		ctx:        ctx,
		size:       size,
		deferrable: s.writes.journal.deferrablePut(r),
		apply: func(tx *writeTx) (err error) {
			if err := tx.checkPut(r); err != nil {
				return err
			}
			resp, err = tx.applyPut(r)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	resp.Header = s.header(resp.Header.Revision)
	return resp, nil
}

func (s *Store) deleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (_ *pb.DeleteRangeResponse, err error) {
	defer func(start time.Time) { s.finish("DeleteRange", r.Key, start, err) }(time.Now())
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	var resp *pb.DeleteRangeResponse
	err = s.writes.propose(ctx, proto.Size(r), func(tx *writeTx) (err error) {
		resp, err = tx.applyDelete(r)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	resp.Header = s.header(resp.Header.Revision)
	return resp, nil
}

// compact makes revisions before a revision unreadable. With Physical it waits until they are
// deleted.
func (s *Store) compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	rev, err := s.compactor.compact(ctx, r.Revision)
	if err != nil {
		return nil, err
	}
	if r.Physical {
		if err := s.compactor.wait(ctx, r.Revision); err != nil {
			return nil, err
		}
	}
	return &pb.CompactionResponse{Header: s.header(max(rev, s.revs.published.Load()))}, nil
}

func (s *Store) txn(ctx context.Context, r *pb.TxnRequest) (_ *pb.TxnResponse, err error) {
	defer func(start time.Time) { s.finish("Txn", firstKey(r), start, err) }(time.Now())
	if err := checkTxn(r, s.opts.MaxTxnOps); err != nil {
		return nil, err
	}
	var resp *pb.TxnResponse
	if onlyReads(r) {
		err = s.reads.view(ctx, func(sn *snap) error {
			path, err := comparePath(sn, r)
			if err != nil {
				return err
			}
			if _, err := checkPath(sn, r, path, nil); err != nil {
				return err
			}
			resp, _, err = runPath(r, path, func() *snap { return sn }, nil)
			if err != nil {
				return err
			}
			resp.Header = s.header(sn.rev)
			return nil
		})
		return resp, err
	}
	size := proto.Size(r)
	if size > s.opts.MaxRequestBytes {
		return nil, ErrTooLarge
	}
	if hasPut(r) {
		if _, err := s.checkSize(r); err != nil {
			return nil, err
		}
	}
	err = s.writes.submit(&proposal{
		ctx:        ctx,
		size:       size,
		deferrable: s.writes.journal.deferrableTxn(r),
		apply: func(tx *writeTx) (err error) {
			resp, err = tx.applyTxn(r)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	resp.Header = s.header(resp.Header.Revision)
	return resp, nil
}

func hasPut(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if op.GetRequestPut() != nil || op.GetRequestTxn() != nil && hasPut(op.GetRequestTxn()) {
				return true
			}
		}
	}
	return false
}

func firstKey(r *pb.TxnRequest) []byte {
	if len(r.Compare) > 0 {
		return r.Compare[0].Key
	}
	return nil
}

// Sizes of a stream's pieces: it starts small, for the first answer to come soon, and grows.
const (
	firstPiece  = 10
	targetPiece = 1 << 20
)

// rangeStream answers a range in pieces that are small in memory, each its own short snapshot at
// one revision.
func (s *Store) rangeStream(ctx context.Context, r *pb.RangeRequest,
	send func(*pb.RangeStreamResponse) error) (err error) {
	defer func(start time.Time) { s.finish("RangeStream", r.Key, start, err) }(time.Now())
	if err := checkRangeStream(r); err != nil {
		return err
	}
	left := r.Limit
	if left == 0 {
		left = math.MaxInt64
	}
	q := &pb.RangeRequest{
		Key:        r.Key,
		RangeEnd:   r.RangeEnd,
		Revision:   r.Revision,
		KeysOnly:   r.KeysOnly,
		CountOnly:  r.CountOnly,
		SortTarget: r.SortTarget,
	} // without an order, as etcd has it, a target sorts each piece
	count, head := int64(0), int64(0)
	for piece := int64(firstPiece); ; {
		q.Limit = min(piece, left)
		if q.CountOnly {
			q.Limit = 0
		}
		var resp *pb.RangeResponse
		var behind int64
		last := false
		err := s.reads.view(ctx, func(sn *snap) (err error) {
			if resp, err = sn.rangeKeys(q, false); err != nil {
				return err
			}
			last = !resp.More || int64(len(resp.Kvs)) == left
			if last && resp.More {
				rev, err := sn.checkRevision(q.Revision)
				if err != nil {
					return err
				}
				behind, err = sn.total(newSpan(afterLast(resp.Kvs), r.RangeEnd), rev)
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		if head == 0 {
			head = resp.Header.Revision
			if q.Revision <= 0 {
				q.Revision = head
			}
		}
		out := &pb.RangeResponse{Kvs: resp.Kvs}
		count += int64(len(resp.Kvs))
		if last {
			out.Header, out.More, out.Count = s.header(head), resp.More, count+behind
			if q.CountOnly {
				out.Count = resp.Count
			}
		}
		if !last {
			left -= int64(len(resp.Kvs))
			q.Key = afterLast(resp.Kvs)
			switch n := proto.Size(out); {
			case n < targetPiece/2:
				piece *= 2
			case n > targetPiece*2:
				piece = max(piece/2, 1)
			}
		}
		// The receiver owns the piece from here on, and takes it apart.
		if err := send(&pb.RangeStreamResponse{RangeResponse: out}); err != nil || last {
			return err
		}
	}
}

// afterLast is the first key behind those of kvs.
func afterLast(kvs []*mvccpb.KeyValue) []byte {
	var last []byte
	for _, kv := range kvs {
		if bytes.Compare(kv.Key, last) > 0 {
			last = kv.Key
		}
	}
	return append(bytes.Clone(last), 0)
}

type kvServer struct {
	pb.UnimplementedKVServer
	s *Store
}

var _ pb.KVServer = kvServer{}

func (k kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp, err := k.s.rangeKeys(ctx, r)
	return resp, toGRPC(err)
}

func (k kvServer) RangeStream(r *pb.RangeRequest, out grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	return toGRPC(k.s.rangeStream(out.Context(), r, out.Send))
}

func (k kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	resp, err := k.s.put(ctx, r)
	return resp, toGRPC(err)
}

func (k kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	resp, err := k.s.deleteRange(ctx, r)
	return resp, toGRPC(err)
}

func (k kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	resp, err := k.s.txn(ctx, r)
	return resp, toGRPC(err)
}

func (k kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	resp, err := k.s.compact(ctx, r)
	return resp, toGRPC(err)
}
