package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// server is one of the two that are compared, by the services it offers on the wire.
type server struct {
	name  string
	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
}

func newServer(name string, conn grpc.ClientConnInterface) *server {
	return &server{name, pb.NewKVClient(conn), pb.NewWatchClient(conn), pb.NewLeaseClient(conn),
		pb.NewMaintenanceClient(conn)}
}

// pair is an etcd and a store that have been told the same from their beginning, so that all
// revisions agree.
type pair struct {
	mu         sync.Mutex
	etcd, mote *server
	compacted  []int64 // revisions both have been compacted to
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p, err := startStore(t, filepath.Join(t.TempDir(), "state.db"), "-deferred", "a/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return &pair{etcd: newServer("etcd", dial(t, startEtcd(t)).ActiveConnection()),
		mote: newServer("mote", dial(t, p.addr).ActiveConnection())}
}

// both calls the two servers and compares what they answer, field by field, and their errors by
// code and text.
func both[Req, Resp proto.Message](ctx context.Context, t testing.TB, p *pair, req Req,
	call func(*server, Req) (Resp, error), opts ...cmp.Option) (resp Resp, ok bool) {
	t.Helper()
	want, werr := call(p.etcd, proto.Clone(req).(Req))
	got, gerr := call(p.mote, proto.Clone(req).(Req))
	if w, g := status.Convert(werr), status.Convert(gerr); w.Code() != g.Code() || w.Message() != g.Message() {
		t.Fatalf("%T %v\netcd: %v\nmote: %v", req, req, werr, gerr)
	}
	if werr != nil {
		return want, false
	}
	opts = append(opts, protocmp.Transform(),
		protocmp.IgnoreFields(&pb.ResponseHeader{}, "cluster_id", "member_id", "raft_term"))
	if d := cmp.Diff(want, got, opts...); d != "" {
		t.Fatalf("%T %v\n-etcd +mote:\n%s", req, req, d)
	}
	return want, true
}

// script turns bytes into operations; what is missing reads as zero, so every input is a script.
type script struct{ b []byte }

func (s *script) n(limit int) int {
	if len(s.b) == 0 {
		return 0
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	return v % limit
}

func (s *script) flag() bool { return s.n(4) == 1 }

var keys = [][]byte{[]byte("a"), []byte("a/1"), []byte("a/2"), []byte("a/3"), []byte("b"), []byte("b\x00"), []byte("c"),
	[]byte("\xff"), []byte("\xff\xff"), []byte("\x00"), nil}

func (s *script) key() []byte { return keys[s.n(len(keys))] }

func (s *script) end() []byte {
	switch s.n(5) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	}
	return s.key()
}

func (s *script) value() []byte {
	return [][]byte{[]byte("x"), nil, []byte("yy"), []byte("zzz"), make([]byte, 5000)}[s.n(5)]
}

func (s *script) revision(now int64) int64 {
	switch s.n(6) {
	case 0, 1, 2:
		return 0
	case 3:
		return now + int64(s.n(3)) - 1
	case 4:
		return now - int64(s.n(20))
	}
	return int64(s.n(4)) - 2
}

func (s *script) rangeRequest(now int64) *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key:          s.key(),
		RangeEnd:     s.end(),
		Limit:        int64(s.n(4)),
		Revision:     s.revision(now),
		SortOrder:    pb.RangeRequest_SortOrder(s.n(3)),
		SortTarget:   pb.RangeRequest_SortTarget(s.n(5)),
		KeysOnly:     s.flag(),
		CountOnly:    s.flag(),
		Serializable: s.flag(),
	}
	if s.flag() {
		for _, f := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if s.flag() {
				*f = now - int64(s.n(12))
			}
		}
	}
	return r
}

func (s *script) put() *pb.PutRequest {
	r := &pb.PutRequest{
		Key:         s.key(),
		Value:       s.value(),
		PrevKv:      s.flag(),
		IgnoreValue: s.flag(),
		IgnoreLease: s.flag(),
	}
	if s.flag() {
		r.Lease = int64(s.n(5))
	}
	if r.IgnoreValue && !s.flag() {
		r.Value = nil
	}
	return r
}

func (s *script) del() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: s.key(), RangeEnd: s.end(), PrevKv: s.flag()}
}

func (s *script) txn(now int64, depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range s.n(3) {
		c := &pb.Compare{
			Key:      s.key(),
			RangeEnd: s.end(),
			Result:   pb.Compare_CompareResult(s.n(4)),
			Target:   pb.Compare_CompareTarget(s.n(5)),
		}
		n := int64(s.n(3))
		switch c.Target {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: n}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n * (now - int64(s.n(8)))}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n * (now - int64(s.n(8)))}
		case pb.Compare_VALUE:
			c.TargetUnion = &pb.Compare_Value{Value: s.value()}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: n}
		}
		r.Compare = append(r.Compare, c)
	}
	for _, ops := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		for range s.n(4) {
			op := &pb.RequestOp{}
			switch k := s.n(7); {
			case k < 2:
				op.Request = &pb.RequestOp_RequestRange{RequestRange: s.rangeRequest(now)}
			case k < 4:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: s.put()}
			case k < 6 || depth == 0:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: s.del()}
			default:
				op.Request = &pb.RequestOp_RequestTxn{RequestTxn: s.txn(now, depth-1)}
			}
			*ops = append(*ops, op)
		}
	}
	return r
}

// bearable changes transactions that etcd 3.7.0 does not survive: a put that keeps the value or
// lease of a key that an operation before it in the same transaction deletes makes it panic.
func bearable(r *pb.TxnRequest) *pb.TxnRequest {
	deletes := false
	visit(r, func(op *pb.RequestOp) { deletes = deletes || op.GetRequestDeleteRange() != nil })
	visit(r, func(op *pb.RequestOp) {
		if p := op.GetRequestPut(); p != nil && deletes {
			p.IgnoreValue, p.IgnoreLease = false, false
		}
	})
	return r
}

func visit(r *pb.TxnRequest, fn func(*pb.RequestOp)) {
	for _, op := range append(slices.Clone(r.Success), r.Failure...) {
		fn(op)
		if nested := op.GetRequestTxn(); nested != nil {
			visit(nested, fn)
		}
	}
}

// run plays one script on both and compares every answer, the history a watch sees, and the hash of
// all of it.
func (p *pair) run(t testing.TB, b []byte) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := &script{b}
	now := p.put(ctx, t, "start")
	first := now
	for len(s.b) > 0 {
		switch k := s.n(20); {
		case k < 5:
			if r, ok := both(ctx, t, p, s.put(),
				func(v *server, r *pb.PutRequest) (*pb.PutResponse, error) { return v.kv.Put(ctx, r) }); ok {
				now = r.Header.Revision
			}
		case k < 9:
			both(ctx, t, p, s.rangeRequest(now),
				func(v *server, r *pb.RangeRequest) (*pb.RangeResponse, error) { return v.kv.Range(ctx, r) })
		case k < 11:
			if r, ok := both(ctx, t, p, s.del(),
				func(v *server, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
					return v.kv.DeleteRange(ctx, r)
				}); ok {
				now = r.Header.Revision
			}
		case k < 15:
			if r, ok := both(ctx, t, p, bearable(s.txn(now, 2)),
				func(v *server, r *pb.TxnRequest) (*pb.TxnResponse, error) { return v.kv.Txn(ctx, r) }); ok {
				now = r.Header.Revision
			}
		case k < 16:
			r := s.rangeRequest(now)
			if r.Limit > 0 {
				// etcd sorts each piece by the target and goes on behind the piece's last key,
				// whatever that is then.
				r.SortTarget = pb.RangeRequest_KEY
			}
			both(ctx, t, p, r, rangeStream(ctx))
		case k < 17:
			both(ctx, t, p, &pb.LeaseGrantRequest{ID: int64(s.n(5)),
				TTL: []int64{1, 60, 1000, 9_000_000_001, -1, 0}[s.n(6)]},
				func(v *server, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
					if r.ID == 0 {
						r.ID = 1 // else each would choose its own
					}
					r.TTL = max(r.TTL, 100) // none ends during the test
					return v.lease.LeaseGrant(ctx, r)
				})
		case k < 18:
			if r, ok := both(ctx, t, p, &pb.LeaseRevokeRequest{ID: int64(s.n(5))},
				func(v *server, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
					return v.lease.LeaseRevoke(ctx, r)
				}); ok {
				now = r.Header.Revision
			}
		case k < 19:
			both(ctx, t, p, &pb.LeaseTimeToLiveRequest{ID: int64(s.n(5)), Keys: true},
				func(v *server, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
					resp, err := v.lease.LeaseTimeToLive(ctx, r)
					if err == nil {
						slices.SortFunc(resp.Keys, slices.Compare)
					}
					return resp, err
				}, protocmp.FilterField(&pb.LeaseTimeToLiveResponse{}, "TTL",
					cmp.Comparer(func(a, b int64) bool { return a-b <= 50 && b-a <= 50 })))
		default:
			rev := now - int64(s.n(12)) + 2
			if _, ok := both(ctx, t, p, &pb.CompactionRequest{Revision: rev, Physical: true},
				func(v *server, r *pb.CompactionRequest) (*pb.CompactionResponse,
					error) {
					return v.kv.Compact(ctx, r)
				}); ok {
				p.compacted = append(p.compacted, rev)
			}
		}
	}
	last := p.compareWatches(ctx, t, first)
	for _, rev := range []int64{0, now, last, last + 100} {
		// For a revision that was compacted to, etcd answers from memory what it hashed at that
		// compaction. That goes for 0 too, which else means the newest: an etcd that was never
		// compacted takes a compaction to 0.
		if !slices.Contains(p.compacted, rev) {
			both(ctx, t, p, &pb.HashKVRequest{Revision: rev},
				func(v *server, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
					return v.maint.HashKV(ctx, r)
				})
		}
	}
	for id := range int64(5) {
		both(ctx, t, p, &pb.LeaseRevokeRequest{ID: id},
			func(v *server, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
				return v.lease.LeaseRevoke(ctx, r)
			})
	}
	both(ctx, t, p, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}},
		func(v *server, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
			return v.kv.DeleteRange(ctx, r)
		})
}

func (p *pair) put(ctx context.Context, t testing.TB, key string) int64 {
	t.Helper()
	r, ok := both(ctx, t, p, &pb.PutRequest{Key: []byte(key)},
		func(v *server, r *pb.PutRequest) (*pb.PutResponse, error) { return v.kv.Put(ctx, r) })
	if !ok {
		t.Fatalf("put %s was refused", key)
	}
	return r.Header.Revision
}

func rangeStream(ctx context.Context) func(*server, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return func(v *server, r *pb.RangeRequest) (*pb.RangeResponse, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		st, err := v.kv.RangeStream(ctx, r)
		if err != nil {
			return nil, err
		}
		all := &pb.RangeResponse{}
		for {
			part, err := st.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					return all, nil
				}
				return nil, err
			}
			proto.Merge(all, part.RangeResponse)
		}
	}
}

// compareWatches watches the same ranges from the same revisions on both and compares what comes
// until a last put, whose revision it returns.
func (p *pair) compareWatches(ctx context.Context, t testing.TB, first int64) int64 {
	t.Helper()
	last := p.put(ctx, t, "a")
	reqs := []*pb.WatchCreateRequest{
		{
			Key:           []byte{0},
			RangeEnd:      []byte{0},
			StartRevision: first,
			PrevKv:        true,
		},
		{
			Key:           []byte("a"),
			RangeEnd:      []byte("b"),
			StartRevision: first,
			PrevKv:        true,
			Filters:       []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT},
		},
		{Key: []byte("a"), StartRevision: min(first+3, last),
			Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}},
		{Key: []byte("b"), RangeEnd: []byte("a"), StartRevision: first},
		{Key: []byte("c"), StartRevision: -1},
	}
	for _, r := range reqs {
		want, got := history(ctx, t, p.etcd, r, last), history(ctx, t, p.mote, r, last)
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Fatalf("watch %v\n-etcd +mote:\n%s", r, d)
		}
	}
	return last
}

type seen struct {
	Events  []*mvccpb.Event
	Refused string
	Compact int64
}

func history(ctx context.Context, t testing.TB, v *server, r *pb.WatchCreateRequest, last int64) (out seen) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := v.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
		t.Fatal(err)
	}
	asked := false
	for {
		resp, err := st.Recv()
		if err != nil {
			t.Fatalf("%s: watch: %v", v.name, err)
		}
		out.Events = append(out.Events, resp.Events...)
		if resp.Canceled {
			out.Refused, out.Compact = resp.CancelReason, resp.CompactRevision
			return out
		}
		// An answer to a request for progress at the last revision means there is no more. etcd
		// does not answer it while a watch is behind, so it is asked again then.
		if len(resp.Events) == 0 && !resp.Created && resp.Header.Revision >= last {
			return out
		}
		if !asked {
			asked = true
			go func() {
				for ctx.Err() == nil {
					// The watch ends with the test; progress asked for then is not missed.
					_ = st.Send(&pb.WatchRequest{
						RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			}()
		}
	}
}

func randomScript(r *rand.Rand) []byte {
	b := make([]byte, 20+r.IntN(1<<(3+r.IntN(7))))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestDifferential_Random plays random scripts on an etcd and a store. MOTE_TEST_DIFFERENTIAL says
// for how long.
func TestDifferential_Random(t *testing.T) {
	d := 20 * time.Second
	if v := os.Getenv("MOTE_TEST_DIFFERENTIAL"); v != "" {
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Logf("a long run is left out: set MOTE_TEST_DIFFERENTIAL=10m")
	}
	p := newPair(t)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	n := 0
	for end := time.Now().Add(d); time.Now().Before(end); n++ {
		b := randomScript(r)
		ok := t.Run(fmt.Sprint("script", n), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d, script %d: %x", seed, n, b)
				}
			}()
			p.run(t, b)
		})
		if !ok {
			return // the two differ from now on
		}
	}
	t.Logf("%d scripts, seed %d", n, seed)
}

// TestDifferential_Hash starts with the simplest history there is.
func TestDifferential_Hash(t *testing.T) {
	p := newPair(t)
	for _, b := range [][]byte{{}, {0, 0, 0}, {9, 0, 0}, {9, 0, 0, 0, 1, 1}} {
		p.run(t, b)
	}
}

// FuzzDifferential lets the fuzzer look for scripts on which the two differ.
func FuzzDifferential(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		f.Add(randomScript(r))
	}
	p := newPair(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 2000 {
			t.Skip("longer scripts find nothing more")
		}
		p.run(t, b)
	})
}
