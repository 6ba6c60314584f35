package runtime

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/runtime/layout"
)

// GetContainerEvents delivers events until the context or the server ends. The kubelet calls it
// only if evented PLEG is enabled.
func (r *runtimeService) GetContainerEvents(ctx context.Context, events chan *runtimeapi.ContainerEventResponse,
	established func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	stream := &eventStream{ctx: namespaces.WithNamespace(ctx, layout.Namespace), events: events}
	if established != nil {
		established(eventStreamClient{stream})
	}
	if err := r.s.GetContainerEvents(&runtimeapi.GetEventsRequest{}, stream); err != nil {
		return errgrpc.ToGRPC(err)
	}
	return io.EOF
}

// eventStream is the server's end of an in-process stream.
type eventStream struct {
	ctx    context.Context
	events chan<- *runtimeapi.ContainerEventResponse
}

func (s *eventStream) Send(e *runtimeapi.ContainerEventResponse) error {
	select {
	case s.events <- e:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *eventStream) Context() context.Context     { return s.ctx }
func (s *eventStream) SetHeader(metadata.MD) error  { return nil }
func (s *eventStream) SendHeader(metadata.MD) error { return nil }
func (s *eventStream) SetTrailer(metadata.MD)       {}
func (s *eventStream) RecvMsg(any) error            { return io.EOF }
func (s *eventStream) SendMsg(m any) error {
	e, ok := m.(*runtimeapi.ContainerEventResponse)
	if !ok {
		return io.ErrUnexpectedEOF
	}
	return s.Send(e)
}

// eventStreamClient is the end the kubelet gets when the stream is established. It uses only its
// context.
type eventStreamClient struct{ *eventStream }

func (c eventStreamClient) Recv() (*runtimeapi.ContainerEventResponse, error) { return nil, io.EOF }
func (c eventStreamClient) Header() (metadata.MD, error)                      { return nil, nil }
func (c eventStreamClient) Trailer() metadata.MD                              { return nil }
func (c eventStreamClient) CloseSend() error                                  { return nil }
