package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/mote-dev/mote/runtime/layout"
)

// ErrNotRunning is wrapped when no container runtime answers for a data folder.
var ErrNotRunning = errors.New("no mote runs over this data folder: start it, or give its --data-dir")

const dialTimeout = 3 * time.Second

// connection is a client of a running mote's containerd, and a context that ends when that mote
// does: containerd's client would wait for it to come back.
type connection struct {
	*containerd.Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  sync.WaitGroup
}

// connect connects to the containerd of the mote that runs over an agent's data folder.
func connect(ctx context.Context, agentDir string) (*connection, error) {
	socket := layout.For(agentDir).Socket
	// gRPC would report a dead socket only with the first call.
	probe, err := net.DialTimeout("unix", socket, dialTimeout)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the container runtime: %w", err)
	}
	_ = probe.Close() // it was only a probe
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(layout.Namespace),
		containerd.WithTimeout(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect to the container runtime: %s: %w", socket, err)
	}
	c := &connection{Client: client}
	// The client logs errors that it also returns.
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx = log.WithLogger(ctx, logrus.NewEntry(quiet))
	c.ctx, c.cancel = context.WithCancelCause(namespaces.WithNamespace(ctx, layout.Namespace))
	if conn, ok := client.Conn().(*grpc.ClientConn); ok {
		c.watch.Go(func() {
			for state := conn.GetState(); conn.WaitForStateChange(c.ctx, state); state = conn.GetState() {
				if now := conn.GetState(); now == connectivity.TransientFailure || state == connectivity.Ready &&
					now != connectivity.Ready {
					c.cancel(fmt.Errorf("%w: it has just ended", ErrNotRunning))
				}
			}
		})
	}
	return c, nil
}

func (c *connection) close() {
	c.cancel(nil)
	c.watch.Wait()
	_ = c.Client.Close() // nothing is sent any more
}

// explain replaces the error of a call by the reason the connection ended, if it did.
func (c *connection) explain(err error) error {
	if cause := context.Cause(c.ctx); err != nil && errors.Is(cause, ErrNotRunning) {
		return cause
	}
	return err
}
