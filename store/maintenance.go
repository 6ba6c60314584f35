package store

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"os"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

type maintenanceServer struct {
	pb.UnimplementedMaintenanceServer
	s *Store
}

var _ pb.MaintenanceServer = maintenanceServer{}

// fileBytes is the size of the file with its write-ahead log.
func (s *Store) fileBytes() (int64, error) {
	n := int64(0)
	for _, p := range []string{s.opts.Path, s.opts.Path + "-wal"} {
		st, err := os.Stat(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("measure store file: %w", err)
		}
		if err == nil {
			n += st.Size()
		}
	}
	return n, nil
}

func (m maintenanceServer) alarms() []*pb.AlarmMember {
	if !m.s.alarm.Load() {
		return nil
	}
	return []*pb.AlarmMember{{MemberID: m.s.memberID, Alarm: pb.AlarmType_NOSPACE}}
}

// Alarm reports whether the last write found no room. The alarm clears once a write succeeds, so
// there is nothing to raise or to disarm.
func (m maintenanceServer) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	resp := &pb.AlarmResponse{Header: m.s.header(m.s.revs.published.Load())}
	if r.Action == pb.AlarmRequest_GET && r.Alarm != pb.AlarmType_CORRUPT {
		resp.Alarms = m.alarms()
	}
	return resp, nil
}

func (m maintenanceServer) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	size, err := m.s.fileBytes()
	if err != nil {
		return nil, toGRPC(err)
	}
	rev := m.s.revs.published.Load()
	resp := &pb.StatusResponse{
		Header:           m.s.header(rev),
		Version:          version.Version,
		Leader:           m.s.memberID,
		RaftIndex:        uint64(rev),
		RaftAppliedIndex: uint64(rev),
		RaftTerm:         raftTerm,
		StorageVersion:   "3.7.0",
		DbSizeQuota:      m.s.opts.MaxBytes,
		DowngradeInfo:    &pb.DowngradeInfo{},
		DbSize:           size,
	}
	free, err := m.s.reads.count(ctx, "PRAGMA freelist_count")
	if err != nil {
		return nil, toGRPC(err)
	}
	resp.DbSizeInUse = max(resp.DbSize-free*m.s.pageBytes, 0)
	for _, a := range m.alarms() {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// Defragment gives all free pages back to the file system, in the same small steps as after a
// compaction.
func (m maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := m.s.compactor.vacuum(ctx, 0, 0); err != nil {
		return nil, toGRPC(err)
	}
	return &pb.DefragmentResponse{Header: m.s.header(m.s.revs.published.Load())}, nil
}

// kvHash hashes the history as etcd hashes its own, so that a store and an etcd with the same
// history agree.
type kvHash struct {
	h   hash.Hash32
	buf []byte
}

func newKVHash() *kvHash {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	h.Write([]byte("key"))
	return &kvHash{h: h}
}

func (k *kvHash) add(r *row) error {
	k.buf = binary.BigEndian.AppendUint64(k.buf[:0], uint64(revOf(r.id)))
	k.buf = append(k.buf, '_')
	k.buf = binary.BigEndian.AppendUint64(k.buf, uint64(r.id&maxChanges))
	kv := r.kv()
	if r.dead() {
		k.buf = append(k.buf, 't')
		kv = &mvccpb.KeyValue{Key: r.key}
	}
	var err error
	k.buf, err = proto.MarshalOptions{}.MarshalAppend(k.buf, kv)
	k.h.Write(k.buf)
	return err
}

// visible reports whether r is what a reader at rev gets for its key.
func (sn *snap) visible(r *row, rev int64) (bool, error) {
	if r.dead() {
		return false, nil
	}
	got, ok, err := sn.get(r.key, rev)
	return ok && got.id == r.id, err
}

// HashKV hashes every version of every key up to a revision. Of those that compaction may have
// taken, etcd counts what is visible at the revision, or if nothing is, what compaction left.
func (m maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	resp := &pb.HashKVResponse{}
	m.s.hashKVMu.Lock()
	defer m.s.hashKVMu.Unlock()
	err := m.s.reads.view(ctx, func(sn *snap) error {
		rev := r.Revision
		switch {
		case rev == 0:
			rev = sn.rev
		case rev > sn.rev:
			return ErrFutureRevision
		case rev < sn.compacted:
			return ErrCompacted
		}
		resp.Header, resp.HashRevision, resp.CompactRevision = m.s.header(sn.rev), rev, sn.compacted
		live, err := sn.total(span{key: []byte{0}, end: []byte{}}, rev)
		if err != nil {
			return err
		}
		visibleAt := rev
		if live == 0 {
			visibleAt = sn.compacted
		}
		h := newKVHash()
		err = sn.c.query("SELECT "+rowColumns+", l.key FROM log l WHERE l.id <= ?1 ORDER BY l.id",
			func(v []driver.Value) (bool, error) {
				got, err := scanRow(asBytes(v[7]), v)
				if err != nil {
					return false, err
				}
				if revOf(got.id) <= sn.compacted {
					if ok, err := sn.visible(&got, visibleAt); err != nil || !ok {
						return err == nil, err
					}
				}
				return true, h.add(&got)
			}, lastID(rev))
		resp.Hash = h.h.Sum32()
		return err
	})
	if err != nil {
		return nil, toGRPC(err)
	}
	return resp, nil
}

// Hash hashes the whole history. etcd means it for its own tests.
func (m maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	kv, err := m.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: kv.Header, Hash: kv.Hash}, nil
}

func (m maintenanceServer) Snapshot(_ *pb.SnapshotRequest, g grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	return toGRPC(m.s.snapshots.stream(g.Context(), g.Send))
}

func (m maintenanceServer) MoveLeader(_ context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if r.TargetID == m.s.memberID {
		return &pb.MoveLeaderResponse{Header: m.s.header(m.s.revs.published.Load())}, nil
	}
	return nil, rpctypes.ErrGRPCBadLeaderTransferee
}

func (m maintenanceServer) Downgrade(_ context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if r.Action == pb.DowngradeRequest_CANCEL {
		return nil, rpctypes.ErrGRPCNoInflightDowngrade
	}
	return nil, fmt.Errorf("%w", rpctypes.ErrGRPCInvalidDowngradeTargetVersion)
}
