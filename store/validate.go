package store

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What these functions refuse, and in which order, is part of etcd's API. They return its errors.

func checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	_, order := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]
	_, target := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]
	if !order || !target {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if r.SortOrder != pb.RangeRequest_NONE &&
		(r.SortTarget != pb.RangeRequest_KEY || r.SortOrder != pb.RangeRequest_ASCEND) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn checks a transaction's form: its size, each operation, and that no key is changed twice.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(r, maxOps); err != nil {
		return err
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		if _, err := overlaps(ops); err != nil {
			return err
		}
	}
	return nil
}

func checkTxnOps(r *pb.TxnRequest, maxOps int) error {
	n := max(len(r.Compare), len(r.Success), len(r.Failure))
	if n > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if err := checkOp(op, maxOps-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch v := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(v.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(v.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(v.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(v.RequestTxn, maxOps)
	}
	return rpctypes.ErrGRPCKeyNotFound
}

// touched is what the operations of a branch may change.
type touched struct {
	puts map[string]struct{}
	dels []*pb.DeleteRangeRequest
}

// deletes reports whether a deletion covers key. Like etcd's own check, it takes an end of one zero
// byte literally and not as "no bound": such a deletion may share a transaction with a put of one
// of its keys.
func (t *touched) deletes(key string) bool {
	for _, d := range t.dels {
		if from := string(d.Key); len(d.RangeEnd) == 0 && from == key || from <= key && key < string(d.RangeEnd) {
			return true
		}
	}
	return false
}

// overlaps refuses a key that is put twice, or put and deleted, by operations that can run
// together. Two branches of one nested transaction exclude each other, so they may touch the same
// keys.
func overlaps(ops []*pb.RequestOp) (*touched, error) {
	t := &touched{puts: map[string]struct{}{}}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			t.dels = append(t.dels, d)
		}
	}
	for _, op := range ops {
		nested := op.GetRequestTxn()
		if nested == nil {
			continue
		}
		then, err := overlaps(nested.Success)
		if err != nil {
			return nil, err
		}
		els, err := overlaps(nested.Failure)
		if err != nil {
			return nil, err
		}
		for k := range then.puts {
			if _, dup := t.puts[k]; dup || t.deletes(k) {
				return nil, rpctypes.ErrGRPCDuplicateKey
			}
			t.puts[k] = struct{}{}
		}
		for k := range els.puts {
			if _, dup := t.puts[k]; dup {
				if _, exclusive := then.puts[k]; !exclusive {
					return nil, rpctypes.ErrGRPCDuplicateKey
				}
			}
			if t.deletes(k) {
				return nil, rpctypes.ErrGRPCDuplicateKey
			}
			t.puts[k] = struct{}{}
		}
		t.dels = append(append(t.dels, then.dels...), els.dels...)
	}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		if _, dup := t.puts[string(p.Key)]; dup || t.deletes(string(p.Key)) {
			return nil, rpctypes.ErrGRPCDuplicateKey
		}
		t.puts[string(p.Key)] = struct{}{}
	}
	return t, nil
}
