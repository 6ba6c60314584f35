package store

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// codec writes answers to ranges without copying their values: what goes out is a list of pieces,
// of which values are the store's own, which nobody changes. All else is as gRPC has it.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*pb.RangeResponse)
	if !ok || len(r.Kvs) == 0 {
		return c.CodecV2.Marshal(v)
	}
	return marshalRange(c.CodecV2, r)
}

// Fields of the messages, see rpc.proto and kv.proto of etcd's API. A test compares with what
// protobuf writes.
const (
	rangeKvs                                                        protowire.Number = 2
	kvKey, kvCreated, kvModified, kvVersion, kvValue, kvLeaseNumber protowire.Number = 1, 2, 3, 4, 5, 6
)

// worthReferring is the size from which on a piece of its own costs less than copying.
const worthReferring = 512

func marshalRange(rest encoding.CodecV2, r *pb.RangeResponse) (mem.BufferSlice, error) {
	// What is not repeated goes first; fields may come in any order.
	head, err := rest.Marshal(&pb.RangeResponse{Header: r.Header, More: r.More, Count: r.Count})
	if err != nil {
		return nil, fmt.Errorf("marshal head of a range: %w", err)
	}
	sizes := make([]int, len(r.Kvs))
	copied, pieces := 0, 0
	for i, kv := range r.Kvs {
		sizes[i] = kvSize(kv)
		copied += protowire.SizeTag(rangeKvs) + protowire.SizeBytes(sizes[i])
		if len(kv.Value) >= worthReferring {
			copied -= len(kv.Value)
			pieces += 2
		}
	}
	out := append(make(mem.BufferSlice, 0, len(head)+pieces+1), head...)
	buf := make([]byte, 0, copied)
	from := 0
	for i, kv := range r.Kvs {
		buf = protowire.AppendTag(buf, rangeKvs, protowire.BytesType)
		buf = protowire.AppendVarint(buf, uint64(sizes[i]))
		if len(kv.Key) > 0 {
			buf = protowire.AppendTag(buf, kvKey, protowire.BytesType)
			buf = protowire.AppendBytes(buf, kv.Key)
		}
		buf = appendNumber(buf, kvCreated, kv.CreateRevision)
		buf = appendNumber(buf, kvModified, kv.ModRevision)
		buf = appendNumber(buf, kvVersion, kv.Version)
		buf = appendNumber(buf, kvLeaseNumber, kv.Lease)
		if len(kv.Value) == 0 {
			continue
		}
		buf = protowire.AppendTag(buf, kvValue, protowire.BytesType)
		if len(kv.Value) < worthReferring {
			buf = protowire.AppendBytes(buf, kv.Value)
			continue
		}
		buf = protowire.AppendVarint(buf, uint64(len(kv.Value)))
		out = append(out, mem.SliceBuffer(buf[from:len(buf):len(buf)]), mem.SliceBuffer(kv.Value))
		from = len(buf)
	}
	if from < len(buf) {
		out = append(out, mem.SliceBuffer(buf[from:]))
	}
	return out, nil
}

func kvSize(kv *mvccpb.KeyValue) int {
	n := 0
	for _, b := range [][]byte{kv.Key, kv.Value} {
		if len(b) > 0 {
			n += protowire.SizeTag(kvKey) + protowire.SizeBytes(len(b))
		}
	}
	for _, v := range [...]int64{kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease} {
		if v != 0 {
			n += protowire.SizeTag(kvKey) + protowire.SizeVarint(uint64(v))
		}
	}
	return n
}

func appendNumber(b []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
}
