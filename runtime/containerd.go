package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/runtime/layout"
)

// criServer is the CRI plugin: the two services whose methods are called directly, and whether it
// has recovered the running pods.
type criServer interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
	IsInitialized() bool
}

// daemon is one started containerd.
type daemon struct {
	plugins []*plugin.Plugin
	cri     criServer
	client  *containerd.Client
	grpc    *grpc.Server
	ttrpc   *ttrpc.Server
	ready   *readiness
	// stop ends the plugins' own loops, such as the garbage collector's, before what they work on
	// is closed.
	stop context.CancelFunc
}

// readiness closes done when every plugin that announced it would report readiness has done so.
type readiness struct {
	// pending counts the plugins still to report, plus one until all are loaded.
	pending atomic.Int64
	done    chan struct{}
}

func newReadiness() *readiness {
	r := &readiness{done: make(chan struct{})}
	r.pending.Store(1)
	return r
}

// register adds a plugin and returns what it calls when it is ready.
func (r *readiness) register() (report func()) {
	r.pending.Add(1)
	return sync.OnceFunc(r.release)
}

func (r *readiness) release() {
	if r.pending.Add(-1) == 0 {
		close(r.done)
	}
}

// startDaemon loads the plugins in the order of their dependencies. It does what containerd's own
// server.New does, except that plugins get their settings from code, that a failure closes what was
// opened before, and that nothing listens yet.
func startDaemon(ctx context.Context, p layout.Paths, settings map[string]any, snapshotter string) (_ *daemon,
	err error) {
	d := &daemon{ready: newReadiness()}
	// The plugins keep this context until they are closed, not until the caller asks to stop: calls
	// in progress may finish.
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	upstream.NameContainerd()
	if err := upstream.SetTempMounts(filepath.Join(p.State, "tmp")); err != nil {
		return nil, err
	}
	set := plugin.NewPluginSet()
	for _, r := range registry.Graph(func(r *plugin.Registration) bool { return !wanted(r, snapshotter) }) {
		if err := d.load(ctx, set, r, p, settings); err != nil {
			return nil, err
		}
	}
	d.ready.release()
	if d.cri == nil {
		return nil, errors.New("load containerd: its CRI plugin is not linked in")
	}
	ic := plugin.NewContext(ctx, set, nil)
	d.client, err = containerd.New("",
		containerd.WithDefaultNamespace(layout.Namespace),
		containerd.WithDefaultPlatform(platforms.Default()),
		containerd.WithInMemoryServices(ic),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd in this process: %w", err)
	}
	return d, d.register(set)
}

func (d *daemon) load(ctx context.Context, set *plugin.Set, r plugin.Registration, p layout.Paths,
	settings map[string]any) error {
	id := r.URI()
	ic := plugin.NewContext(ctx, set, map[string]string{
		plugins.PropertyRootDir:      filepath.Join(p.Root, id),
		plugins.PropertyStateDir:     filepath.Join(p.State, id),
		plugins.PropertyGRPCAddress:  p.Socket,
		plugins.PropertyTTRPCAddress: p.TTRPC,
	})
	ic.RegisterReadiness = d.ready.register
	if r.Config != nil {
		if err := configure(settings, r); err != nil {
			return err
		}
		ic.Config = r.Config
	}
	loaded := r.Init(ic)
	if err := set.Add(loaded); err != nil {
		return fmt.Errorf("load %s: %w", id, err)
	}
	instance, err := loaded.Instance()
	switch {
	case plugin.IsSkipPlugin(err):
		return nil
	case err != nil:
		return fmt.Errorf("load %s: %w", id, err)
	}
	d.plugins = append(d.plugins, loaded)
	if r.Type == plugins.GRPCPlugin && r.ID == "cri" {
		cri, ok := instance.(criServer)
		if !ok {
			return fmt.Errorf("load %s: its type %T is not the expected one", id, instance)
		}
		d.cri = cri
	}
	return nil
}

// register puts the plugins' services on the two servers.
func (d *daemon) register(set *plugin.Set) error {
	d.grpc = grpc.NewServer(
		grpc.ChainUnaryInterceptor(unaryNamespace),
		grpc.ChainStreamInterceptor(streamNamespace),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	var err error
	// Shims run as the same user; nobody else may report their events.
	d.ttrpc, err = ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return fmt.Errorf("create server for shims: %w", err)
	}
	for _, p := range set.GetAll() {
		instance, err := p.Instance()
		if err != nil {
			continue
		}
		if s, ok := instance.(interface{ Register(*grpc.Server) error }); ok &&
			p.Registration.Type == plugins.GRPCPlugin {
			if err := s.Register(d.grpc); err != nil {
				return fmt.Errorf("register %s: %w", p.Registration.URI(), err)
			}
		}
		if s, ok := instance.(interface{ RegisterTTRPC(*ttrpc.Server) error }); ok {
			if err := s.RegisterTTRPC(d.ttrpc); err != nil {
				return fmt.Errorf("register %s for shims: %w", p.Registration.URI(), err)
			}
		}
	}
	return nil
}

// listen opens both sockets, so that clients can connect as soon as the runtime is ready.
func (d *daemon) listen(p layout.Paths) (main, shims net.Listener, err error) {
	main, err = listen(p.Socket)
	if err != nil {
		return nil, nil, err
	}
	shims, err = listen(p.TTRPC)
	if err != nil {
		return nil, nil, errors.Join(err, main.Close())
	}
	return main, shims, nil
}

// serve serves the sockets until the context ends, and closes them.
func (d *daemon) serve(ctx context.Context, main, shims net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := d.grpc.Serve(main); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve containerd's socket: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		if err := d.ttrpc.Serve(context.WithoutCancel(ctx), shims); err != nil &&
			!errors.Is(err, ttrpc.ErrServerClosed) {
			return fmt.Errorf("serve the shims' socket: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		d.grpc.Stop()
		return d.ttrpc.Close()
	})
	return g.Wait()
}

// close closes the plugins, last loaded first; the metadata file is among them.
func (d *daemon) close() error {
	d.stop()
	var errs []error
	for _, p := range slices.Backward(d.plugins) {
		instance, err := p.Instance()
		if err != nil {
			continue
		}
		if c, ok := instance.(io.Closer); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close %s: %w", p.Registration.URI(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// listen creates a socket that only this user can reach, replacing a dead one.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// The two interceptors pass the namespace of a request on to calls containerd makes on its behalf.
func unaryNamespace(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	return handler(ctx, req)
}

func streamNamespace(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if ns, ok := namespaces.Namespace(ss.Context()); ok {
		ss = namespacedStream{ServerStream: ss, ctx: namespaces.WithNamespace(ss.Context(), ns)}
	}
	return handler(srv, ss)
}

// namespacedStream replaces the context of a stream, which gRPC exposes only through the stream.
type namespacedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s namespacedStream) Context() context.Context { return s.ctx }
