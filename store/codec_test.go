package store

import (
	"bytes"
	"math"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func TestCodec_Range_IsWhatProtobufReads(t *testing.T) {
	big := bytes.Repeat([]byte("v"), 1<<20)
	for _, tc := range []struct {
		name string
		resp *pb.RangeResponse
	}{
		{"empty", &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 7}}},
		{"head only", &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 7}, Count: 3, More: true}},
		{"no head", &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("k")}}}},
		{"all fields", &pb.RangeResponse{
			Header: &pb.ResponseHeader{
				ClusterId: math.MaxUint64,
				MemberId:  1,
				Revision:  math.MaxInt64,
				RaftTerm:  2,
			},
			Count: math.MaxInt64,
			More:  true,
			Kvs: []*mvccpb.KeyValue{
				{
					Key:            []byte("small"),
					Value:          []byte("v"),
					CreateRevision: 1,
					ModRevision:    300,
					Version:        2,
					Lease:          math.MaxInt64,
				},
				{
					Key:         []byte("referred"),
					Value:       big[:worthReferring],
					ModRevision: 1 << 40,
					Lease:       -1,
				},
				{Key: []byte("just copied"), Value: big[:worthReferring-1]},
				{Key: big[:300], Value: big},
				{},
			},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parts, err := newCodec().Marshal(tc.resp)
			if err != nil {
				t.Fatal(err)
			}
			defer parts.Free()
			if want := proto.Size(tc.resp); parts.Len() != want {
				t.Errorf("%d bytes, want %d", parts.Len(), want)
			}
			got := &pb.RangeResponse{}
			if err := proto.Unmarshal(parts.Materialize(), got); err != nil || !proto.Equal(got, tc.resp) {
				t.Errorf("read back: %v, %v", got, err)
			}
		})
	}
}
