package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	internalapi "k8s.io/cri-api/pkg/apis"

	"github.com/mote-dev/mote/runtime/layout"
)

// The two types below turn the server side of the CRI protocol, which containerd
// implements, into the client side interfaces the kubelet takes, by plain
// method calls. They keep what the kubelet's own gRPC client promises: time
// limits, gRPC status errors, and its few checks of answers.
var (
	_ internalapi.RuntimeService      = (*runtimeService)(nil)
	_ internalapi.ImageManagerService = (*imageService)(nil)
)

// criTimeout limits a call that names no limit of its own; it is the kubelet's
// default runtimeRequestTimeout.
const criTimeout = 2 * time.Minute

// errIncomplete is wrapped where an answer lacks what the protocol promises.
var errIncomplete = errors.New("container runtime gave an incomplete answer")

// call runs one server method with the namespace and the time limit it needs,
// and turns its error into a gRPC status, as the wire would have.
func call[Req, Resp any](ctx context.Context, limit time.Duration, method func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	ctx = namespaces.WithNamespace(ctx, layout.Namespace)
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	resp, err := method(ctx, req)
	if err != nil {
		var none Resp
		return none, errgrpc.ToGRPC(err)
	}
	return resp, nil
}

// incomplete builds the error for an answer without the named field.
func incomplete(call, field string) error {
	return fmt.Errorf("%s: %w: no %s", call, errIncomplete, field)
}
