package store

import (
	"context"
	"errors"
	"io"
	"net"
	goruntime "runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// RegisterGRPC registers etcd's services on gs. gs should take messages of at least
// GRPCMessageBytes.
func (s *Store) RegisterGRPC(gs *grpc.Server) {
	pb.RegisterKVServer(gs, kvServer{s: s})
	pb.RegisterWatchServer(gs, watchServer{s: s})
	pb.RegisterLeaseServer(gs, leaseServer{s: s})
	pb.RegisterMaintenanceServer(gs, maintenanceServer{s: s})
	pb.RegisterClusterServer(gs, clusterServer{s: s})
	pb.RegisterAuthServer(gs, authServer{s: s})
}

// GRPCMessageBytes is the largest message a client may send.
func (s *Store) GRPCMessageBytes() int { return s.opts.MaxRequestBytes + grpcOverhead }

// Serve answers etcd clients on l until ctx ends, and does the store's background work meanwhile.
// It closes l.
func (s *Store) Serve(ctx context.Context, l net.Listener) error {
	gs := grpc.NewServer(grpc.ForceServerCodecV2(newCodec()), grpc.MaxRecvMsgSize(s.GRPCMessageBytes()),
		grpc.MaxSendMsgSize(1<<31-1), grpc.MaxConcurrentStreams(1<<32-1),
		grpc.WriteBufferSize(128<<10), grpc.SharedWriteBuffer(true),
		// spares each request a new goroutine and the growth of its stack
		grpc.NumStreamWorkers(uint32(goruntime.NumCPU())),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
	s.RegisterGRPC(gs)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() {
		ran <- s.Run(ctx)
		cancel()
	}()
	served := make(chan error, 1)
	go func() { served <- gs.Serve(l) }()
	var err error
	select {
	case err = <-served:
		cancel()
	case <-ctx.Done():
		gs.Stop()
		err = <-served
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil
	}
	return errors.Join(err, <-ran)
}

type watchServer struct {
	pb.UnimplementedWatchServer
	s *Store
}

var _ pb.WatchServer = watchServer{}

func (ws watchServer) Watch(g grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	st := ws.s.watches.newStream()
	defer st.close()
	received := make(chan error, 1)
	// Recv returns at the latest when this handler has returned, so nobody needs to wait for it.
	go func() {
		received <- receiveWatch(st, g)
		cancel()
	}()
	err := st.run(ctx, g.Send)
	select {
	case rerr := <-received:
		if rerr == nil {
			return nil // the client has closed its side
		}
	default:
	}
	if errors.Is(err, context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return toGRPC(err)
}

func receiveWatch(st *watchStream, g grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	for {
		r, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch v := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if v.CreateRequest != nil {
				st.create(v.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if v.CancelRequest != nil {
				st.cancel(v.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			st.requestProgress()
		}
	}
}

type leaseServer struct {
	pb.UnimplementedLeaseServer
	s *Store
}

var _ pb.LeaseServer = leaseServer{}

func (ls leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	resp, err := ls.s.leases.grant(ctx, r)
	return resp, toGRPC(err)
}

func (ls leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := ls.s.leases.revoke(ctx, r.ID, false); err != nil {
		return nil, toGRPC(err)
	}
	return &pb.LeaseRevokeResponse{Header: ls.s.header(ls.s.revs.published.Load())}, nil
}

func (ls leaseServer) LeaseKeepAlive(g grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest,
	pb.LeaseKeepAliveResponse]) error {
	for {
		r, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := ls.s.leases.renewal(g.Context(), r.ID)
		if err != nil {
			return toGRPC(err)
		}
		if err := g.Send(resp); err != nil {
			return err
		}
	}
}

// renewal answers one keep-alive.
func (s *leases) renewal(ctx context.Context, id int64) (*pb.LeaseKeepAliveResponse, error) {
	// The header's revision is from before the renewal: seeing it must not tell of anything that
	// came after.
	resp := &pb.LeaseKeepAliveResponse{Header: s.header(s.revs.published.Load()), ID: id}
	var err error
	resp.TTL, err = s.keepAlive(ctx, id)
	return resp, err
}

func (ls leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse,
	error) {
	resp, err := ls.s.leases.timeToLive(ctx, r)
	return resp, toGRPC(err)
}

func (ls leaseServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	resp := &pb.LeaseLeasesResponse{Header: ls.s.header(ls.s.revs.published.Load())}
	for _, id := range ls.s.leases.ids() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: id})
	}
	return resp, nil
}

type clusterServer struct {
	pb.UnimplementedClusterServer
	s *Store
}

var _ pb.ClusterServer = clusterServer{}

func (cs clusterServer) members() []*pb.Member {
	return []*pb.Member{{ID: cs.s.memberID, Name: "mote"}}
}

func (cs clusterServer) MemberList(context.Context, *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	return &pb.MemberListResponse{Header: cs.s.header(0), Members: cs.members()}, nil
}

// The members of a store are fixed: there is the one.

func (cs clusterServer) MemberAdd(context.Context, *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	return nil, rpctypes.ErrGRPCNotCapable
}

func (cs clusterServer) MemberRemove(_ context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	return nil, cs.refuse(r.ID)
}

func (cs clusterServer) MemberUpdate(_ context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	return nil, cs.refuse(r.ID)
}

func (cs clusterServer) MemberPromote(_ context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse,
	error) {
	if r.ID == cs.s.memberID {
		return nil, rpctypes.ErrGRPCMemberNotLearner
	}
	return nil, rpctypes.ErrGRPCMemberNotFound
}

func (cs clusterServer) refuse(id uint64) error {
	if id == cs.s.memberID {
		return rpctypes.ErrGRPCNotCapable
	}
	return rpctypes.ErrGRPCMemberNotFound
}
