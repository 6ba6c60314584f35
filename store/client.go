package store

import (
	"context"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Client gives an etcd client that calls the store directly, with no connection. Its errors are
// those clientv3 gives. Keys and values in its answers and events are shared: they must not be
// changed. Each client's watches are its own, so that RequestProgress reaches no other client's.
func (s *Store) Client(ctx context.Context) *clientv3.Client {
	c := clientv3.NewCtxClient(ctx, clientv3.WithZapLogger(s.log))
	c.KV = clientv3.NewKVFromKVClient(localKV{s}, c)
	c.Watcher = &localWatcher{s: s, streams: map[*watchStream]*localWatch{}}
	c.Lease = clientv3.NewLeaseFromLeaseClient(localLease{s}, c, 5*time.Second)
	c.Maintenance = clientv3.NewMaintenanceFromMaintenanceClient(localMaintenance{maintenanceServer{s: s}}, c)
	c.Cluster = clientv3.NewClusterFromClusterClient(localCluster{clusterServer{s: s}}, c)
	return c
}

// KubernetesClient gives the client that the API server's storage takes. One for each resource
// costs little and keeps requests for watch progress between a resource and its watch.
func (s *Store) KubernetesClient(ctx context.Context) *kubernetes.Client {
	return &kubernetes.Client{Client: s.Client(ctx), Kubernetes: kubeStore{s}}
}

// Endpoint is what upstream's check of a server's features takes: the names of its endpoints, and
// their status. A client made by Client names none, because there are none to connect to.
type Endpoint struct{ *clientv3.Client }

// Endpoint gives the store as a named endpoint.
func (s *Store) Endpoint(ctx context.Context) Endpoint { return Endpoint{s.Client(ctx)} }

// Endpoints names the store.
func (Endpoint) Endpoints() []string { return []string{"in-process"} }

type localKV struct{ s *Store }

var _ pb.KVClient = localKV{}

func (l localKV) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	resp, err := l.s.rangeKeys(ctx, r)
	return resp, toGRPC(err)
}

func (l localKV) RangeStream(ctx context.Context, r *pb.RangeRequest,
	_ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.RangeStreamResponse], error) {
	return startPipe(ctx, &l.s.tasks, func(ctx context.Context, send func(*pb.RangeStreamResponse) error) error {
		return l.s.rangeStream(ctx, r, send)
	}), nil
}

func (l localKV) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	resp, err := l.s.put(ctx, r)
	return resp, toGRPC(err)
}

func (l localKV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest,
	_ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	resp, err := l.s.deleteRange(ctx, r)
	return resp, toGRPC(err)
}

func (l localKV) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	resp, err := l.s.txn(ctx, r)
	return resp, toGRPC(err)
}

func (l localKV) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse,
	error) {
	resp, err := l.s.compact(ctx, r)
	return resp, toGRPC(err)
}

// pipe is the receiving end of a stream that a goroutine of the store fills.
type pipe[T any] struct {
	grpc.ClientStream // for the methods nobody calls on a stream without a connection
	ctx               context.Context
	ch                chan *T
	err               error // set before ch is closed
}

// startPipe runs fill in a goroutine that ends when fill is done, or with ctx or the store.
func startPipe[T any](ctx context.Context, tasks *tasks,
	fill func(ctx context.Context, send func(*T) error) error) *pipe[T] {
	p := &pipe[T]{ctx: ctx, ch: make(chan *T)}
	tctx, end, err := tasks.begin(ctx)
	if err != nil {
		p.err = toGRPC(err)
		close(p.ch)
		return p
	}
	go func() {
		defer end()
		defer close(p.ch)
		err := fill(tctx, func(v *T) error {
			select {
			case p.ch <- v:
				return nil
			case <-tctx.Done():
				return tctx.Err()
			}
		})
		if closed := closing(tctx); err != nil && closed != nil {
			err = closed
		}
		p.err = toGRPC(err)
	}()
	return p
}

func (p *pipe[T]) Context() context.Context { return p.ctx }
func (p *pipe[T]) CloseSend() error         { return nil }

func (p *pipe[T]) Recv() (*T, error) {
	select {
	case v, ok := <-p.ch:
		switch {
		case ok:
			return v, nil
		case p.err != nil:
			return nil, p.err
		}
		return nil, io.EOF
	case <-p.ctx.Done():
		return nil, status.FromContextError(p.ctx.Err()).Err()
	}
}

type localLease struct{ s *Store }

var _ pb.LeaseClient = localLease{}

func (l localLease) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest,
	_ ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	return leaseServer{s: l.s}.LeaseGrant(ctx, r)
}

func (l localLease) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest,
	_ ...grpc.CallOption) (*pb.LeaseRevokeResponse, error) {
	return leaseServer{s: l.s}.LeaseRevoke(ctx, r)
}

func (l localLease) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest,
	_ ...grpc.CallOption) (*pb.LeaseTimeToLiveResponse, error) {
	return leaseServer{s: l.s}.LeaseTimeToLive(ctx, r)
}

func (l localLease) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest,
	_ ...grpc.CallOption) (*pb.LeaseLeasesResponse, error) {
	return leaseServer{s: l.s}.LeaseLeases(ctx, r)
}

func (l localLease) LeaseKeepAlive(ctx context.Context,
	_ ...grpc.CallOption) (grpc.BidiStreamingClient[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse], error) {
	return &localKeepAlive{s: l.s, ctx: ctx, answers: make(chan *pb.LeaseKeepAliveResponse, 16)}, nil
}

// localKeepAlive renews in Send and hands the answers to Recv.
type localKeepAlive struct {
	grpc.ClientStream
	s       *Store
	ctx     context.Context
	answers chan *pb.LeaseKeepAliveResponse
}

func (k *localKeepAlive) Context() context.Context { return k.ctx }
func (k *localKeepAlive) CloseSend() error         { return nil }

func (k *localKeepAlive) Send(r *pb.LeaseKeepAliveRequest) error {
	resp, err := k.s.leases.renewal(k.ctx, r.ID)
	if err != nil {
		return toGRPC(err)
	}
	select {
	case k.answers <- resp:
		return nil
	case <-k.ctx.Done():
		return status.FromContextError(k.ctx.Err()).Err()
	}
}

func (k *localKeepAlive) Recv() (*pb.LeaseKeepAliveResponse, error) {
	select {
	case r := <-k.answers:
		return r, nil
	case <-k.s.closed:
		return nil, toGRPC(ErrClosed)
	case <-k.ctx.Done():
		return nil, status.FromContextError(k.ctx.Err()).Err()
	}
}

type localCluster struct{ srv clusterServer }

var _ pb.ClusterClient = localCluster{}

func (l localCluster) MemberList(ctx context.Context, r *pb.MemberListRequest,
	_ ...grpc.CallOption) (*pb.MemberListResponse, error) {
	return l.srv.MemberList(ctx, r)
}

func (l localCluster) MemberAdd(ctx context.Context, r *pb.MemberAddRequest,
	_ ...grpc.CallOption) (*pb.MemberAddResponse, error) {
	return l.srv.MemberAdd(ctx, r)
}

func (l localCluster) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest,
	_ ...grpc.CallOption) (*pb.MemberRemoveResponse, error) {
	return l.srv.MemberRemove(ctx, r)
}

func (l localCluster) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest,
	_ ...grpc.CallOption) (*pb.MemberUpdateResponse, error) {
	return l.srv.MemberUpdate(ctx, r)
}

func (l localCluster) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest,
	_ ...grpc.CallOption) (*pb.MemberPromoteResponse, error) {
	return l.srv.MemberPromote(ctx, r)
}

type localMaintenance struct{ srv maintenanceServer }

var _ pb.MaintenanceClient = localMaintenance{}

func (l localMaintenance) Alarm(ctx context.Context, r *pb.AlarmRequest, _ ...grpc.CallOption) (*pb.AlarmResponse,
	error) {
	return l.srv.Alarm(ctx, r)
}

func (l localMaintenance) Status(ctx context.Context, r *pb.StatusRequest, _ ...grpc.CallOption) (*pb.StatusResponse,
	error) {
	return l.srv.Status(ctx, r)
}

func (l localMaintenance) Defragment(ctx context.Context, r *pb.DefragmentRequest,
	_ ...grpc.CallOption) (*pb.DefragmentResponse, error) {
	return l.srv.Defragment(ctx, r)
}

func (l localMaintenance) Hash(ctx context.Context, r *pb.HashRequest, _ ...grpc.CallOption) (*pb.HashResponse, error) {
	return l.srv.Hash(ctx, r)
}

func (l localMaintenance) HashKV(ctx context.Context, r *pb.HashKVRequest, _ ...grpc.CallOption) (*pb.HashKVResponse,
	error) {
	return l.srv.HashKV(ctx, r)
}

func (l localMaintenance) Snapshot(ctx context.Context, _ *pb.SnapshotRequest,
	_ ...grpc.CallOption) (grpc.ServerStreamingClient[pb.SnapshotResponse], error) {
	return startPipe(ctx, &l.srv.s.tasks, l.srv.s.snapshots.stream), nil
}

func (l localMaintenance) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest,
	_ ...grpc.CallOption) (*pb.MoveLeaderResponse, error) {
	return l.srv.MoveLeader(ctx, r)
}

func (l localMaintenance) Downgrade(ctx context.Context, r *pb.DowngradeRequest,
	_ ...grpc.CallOption) (*pb.DowngradeResponse, error) {
	return l.srv.Downgrade(ctx, r)
}

// kubeStore is the API server's view of the store. It makes the requests that etcd's own
// implementation makes, without copying values on the way.
type kubeStore struct{ s *Store }

var _ kubernetes.Interface = kubeStore{}

func (k kubeStore) Get(ctx context.Context, key string, o kubernetes.GetOptions) (resp kubernetes.GetResponse,
	err error) {
	got, err := k.s.rangeKeys(ctx, &pb.RangeRequest{Key: []byte(key), Revision: o.Revision, Limit: 1})
	if err != nil {
		return resp, clientv3.ContextError(ctx, toGRPC(err))
	}
	resp.Revision = got.Header.Revision
	resp.KV = onlyKV(got)
	return resp, nil
}

func (k kubeStore) List(ctx context.Context, prefix string, o kubernetes.ListOptions) (resp kubernetes.ListResponse,
	err error) {
	start := prefix
	if o.Continue != "" {
		start = o.Continue
	}
	got, err := k.s.rangeKeys(ctx, &pb.RangeRequest{
		Key:      []byte(start),
		RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)),
		Limit:    o.Limit,
		Revision: o.Revision,
	})
	if err != nil {
		return resp, clientv3.ContextError(ctx, toGRPC(err))
	}
	return kubernetes.ListResponse{Kvs: got.Kvs, Count: got.Count, Revision: got.Header.Revision}, nil
}

func (k kubeStore) Count(ctx context.Context, prefix string, _ kubernetes.CountOptions) (int64, error) {
	got, err := k.s.rangeKeys(ctx,
		&pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), CountOnly: true})
	if err != nil {
		return 0, clientv3.ContextError(ctx, toGRPC(err))
	}
	return got.Count, nil
}

func (k kubeStore) OptimisticPut(ctx context.Context, key string, value []byte, rev int64,
	o kubernetes.PutOptions) (resp kubernetes.PutResponse, err error) {
	put := &pb.PutRequest{Key: []byte(key), Value: value, Lease: int64(o.LeaseID)}
	got, err := k.guarded(ctx, put.Key, rev, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}},
		o.GetOnFailure)
	if err != nil {
		return resp, err
	}
	return kubernetes.PutResponse{KV: failureKV(got), Succeeded: got.Succeeded, Revision: got.Header.Revision}, nil
}

func (k kubeStore) OptimisticDelete(ctx context.Context, key string, rev int64,
	o kubernetes.DeleteOptions) (resp kubernetes.DeleteResponse, err error) {
	del := &pb.DeleteRangeRequest{Key: []byte(key)}
	got, err := k.guarded(ctx, del.Key, rev,
		&pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del}}, o.GetOnFailure)
	if err != nil {
		return resp, err
	}
	return kubernetes.DeleteResponse{KV: failureKV(got), Succeeded: got.Succeeded, Revision: got.Header.Revision}, nil
}

// guarded does op if the key was last changed at rev, and else reads it if asked to.
func (k kubeStore) guarded(ctx context.Context, key []byte, rev int64, op *pb.RequestOp, get bool) (*pb.TxnResponse,
	error) {
	r := &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Target:      pb.Compare_MOD,
			Result:      pb.Compare_EQUAL,
			Key:         key,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
		}},
		Success: []*pb.RequestOp{op},
	}
	if get {
		r.Failure = []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}}
	}
	resp, err := k.s.txn(ctx, r)
	return resp, clientv3.ContextError(ctx, toGRPC(err))
}

func onlyKV(r *pb.RangeResponse) *mvccpb.KeyValue {
	if len(r.GetKvs()) == 1 {
		return r.Kvs[0]
	}
	return nil
}

func failureKV(r *pb.TxnResponse) *mvccpb.KeyValue {
	if r.Succeeded || len(r.Responses) == 0 {
		return nil
	}
	return onlyKV(r.Responses[0].GetResponseRange())
}
