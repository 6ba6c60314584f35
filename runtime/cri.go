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

// The two types below implement the client interfaces the kubelet takes by calling containerd's CRI
// server directly. They keep what the kubelet's own gRPC client promises: time limits, gRPC status
// errors, and its few checks of responses.
var (
	_ internalapi.RuntimeService      = (*runtimeService)(nil)
	_ internalapi.ImageManagerService = (*imageService)(nil)
)

// criTimeout limits a call without a limit of its own. It is the kubelet's default
// runtimeRequestTimeout.
const criTimeout = 2 * time.Minute

// errIncomplete is wrapped when a response lacks a field the protocol requires.
var errIncomplete = errors.New("container runtime sent an incomplete response")

// call runs one server method with the namespace and the time limit it needs, and turns its error
// into a gRPC status, as a connection would.
func call[Req, Resp any](ctx context.Context, limit time.Duration, method func(context.Context, Req) (Resp, error),
	req Req) (Resp, error) {
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

// incomplete returns the error for a response without the named field.
func incomplete(call, field string) error {
	return fmt.Errorf("%s: %w: no %s", call, errIncomplete, field)
}
