package store

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// revisions are the numbers that readers and writers share.
type revisions struct {
	floor     int64        // the least revision of the store, fixed while it is open
	published atomic.Int64 // the newest revision that watchers were given
	compacted atomic.Int64 // the newest compaction that was requested and is durable
}

// of returns the revision of a file whose newest row is newestID. Rows can be older than the floor.
func (r *revisions) of(newestID int64) int64 { return max(r.floor, revOf(newestID)) }

// raftTerm is the term in response headers: there is one member and never another election.
const raftTerm = 2

// member is the identity that the store reports: cluster and member ID.
type member struct{ clusterID, memberID uint64 }

func (m member) header(rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{
		ClusterId: m.clusterID,
		MemberId:  m.memberID,
		RaftTerm:  raftTerm,
		Revision:  rev,
	}
}
