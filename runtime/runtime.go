package runtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/image"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/recovery"
	"github.com/mote-dev/mote/runtime/registry"
)

// imageEventsTimeout bounds the wait for CRI to learn of loaded images, which takes milliseconds.
const imageEventsTimeout = 5 * time.Second

// errStopped ends the parts of a Run whose caller asked it to stop.
var errStopped = errors.New("container runtime was asked to stop")

// Runtime is the container runtime of one node. Containers outlive it: the next Run over the same
// folders finds them again.
type Runtime struct {
	cfg   Config
	p     layout.Paths
	log   *zap.Logger
	ready chan struct{}

	// mu guards what follows, which Run sets when it is ready.
	mu     sync.Mutex
	daemon *daemon
	bundle bundle.Bundle
}

// New checks the configuration. Nothing on disk is touched before Run.
func New(c Config) (*Runtime, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Runtime{
		cfg:   c,
		p:     layout.For(c.DataDir),
		log:   c.Logger,
		ready: make(chan struct{}),
	}, nil
}

// Ready is closed when CRI answers, has recovered the running pods, and the bundled and local
// images are loaded.
func (r *Runtime) Ready() <-chan struct{} { return r.ready }

// Socket returns the path of containerd's socket, which also serves CRI.
func (r *Runtime) Socket() string { return r.p.Socket }

// RunDir returns the folder for what need not survive a reboot.
func (r *Runtime) RunDir() string { return r.p.Run }

// BinDir returns the folder of the unpacked tools. Paths in it stay valid across upgrades.
func (r *Runtime) BinDir() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bundle.Dir
}

// PauseImage returns the reference of the pods' sandbox image, known once Ready.
func (r *Runtime) PauseImage() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bundle.Manifest.PauseImage
}

// RuntimeService returns CRI's runtime service as Go calls, without a socket. Nil before Ready.
func (r *Runtime) RuntimeService() internalapi.RuntimeService {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.daemon == nil {
		return nil
	}
	return &runtimeService{s: r.daemon.cri, dataDir: r.cfg.DataDir, log: r.log}
}

// ImageService returns CRI's image service as Go calls, without a socket. Nil before Ready.
func (r *Runtime) ImageService() internalapi.ImageManagerService {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.daemon == nil {
		return nil
	}
	return &imageService{s: r.daemon.cri}
}

// Run repairs what the last stop left damaged, starts containerd, loads images, and blocks until
// ctx ends or containerd fails. Pods keep running when it returns. It may be called once.
func (r *Runtime) Run(ctx context.Context) (err error) {
	fatal := make(chan error, 1)
	upstream.BridgeContainerd(r.log.Named("containerd"), r.cfg.Debug, fatal)

	if err := r.p.Mkdirs(); err != nil {
		return err
	}
	unlock, err := recovery.Lock(r.p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	registries, err := ReadRegistries(r.cfg.RegistriesFile)
	if err != nil {
		return err
	}
	proxy, err := registries.Listen(r.log.Named("mirrors"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()

	last, err := recovery.ReadLastStop(r.p)
	if err != nil {
		return err
	}
	b, err := bundle.Unpack(bundle.Options{
		Dir:           r.p.Bin,
		VerifyContent: !last.Clean,
		Progress:      func(done, total int64) { r.cfg.Progress("unpack", "bundled tools", done, total) },
	})
	if err != nil {
		return err
	}
	// containerd finds its shim by name on the PATH, and the shim finds runc there. A shim given by
	// path would count as a third party's, which containerd runs once more before each start to ask
	// what it can do.
	if err := upstream.PrependPath(b.Dir); err != nil {
		return err
	}
	if err := registries.Write(ctx, r.p.Registries, proxy); err != nil {
		return err
	}
	d, snapshotter, err := r.start(ctx, b, last, registries.Credentials(proxy))
	if err != nil {
		return err
	}

	l := image.Loader{
		Client:      d.client,
		Snapshotter: snapshotter,
		Bundle:      b,
		Paths:       r.p,
		Log:         r.log,
		Progress:    r.cfg.Progress,
	}
	if err := r.serve(ctx, d, l, last, proxy, fatal); err != nil {
		return err
	}
	return recovery.MarkCleanStop(r.p)
}

// serve runs a started daemon until ctx ends or a part fails, and closes it. It returns what failed
// first, and then what the close adds to it.
func (r *Runtime) serve(ctx context.Context, d *daemon, l image.Loader, last recovery.LastStop,
	proxy *registry.Proxy, fatal <-chan error) (err error) {
	defer func() {
		switch closeErr := d.close(); {
		case closeErr == nil:
		case err == nil:
			err = closeErr
		default:
			err = fmt.Errorf("%w; then %w", err, closeErr)
		}
	}()
	main, shims, err := d.listen(r.p)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.serve(gctx, main, shims) })
	g.Go(func() error { return proxy.Run(gctx) })
	g.Go(func() error {
		select {
		case err := <-fatal:
			return err
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		if err := r.becomeReady(gctx, d, l); err != nil {
			return err
		}
		if !last.Clean {
			g.Go(func() error {
				if err := l.Verify(gctx); err != nil && gctx.Err() == nil {
					r.log.Error("images were not verified", zap.Error(err))
				}
				return nil
			})
		}
		if err := image.KeepList(gctx, d.client, r.p, r.log); err != nil {
			return err
		}
		<-gctx.Done()
		return errStopped
	})
	err = g.Wait()
	if ctx.Err() != nil {
		// Errors of parts that are being stopped are not failures.
		return nil
	}
	return err
}

// start repairs the state on disk and brings containerd up. Only damaged records are set aside; any
// other error ends the start, and pods keep running.
func (r *Runtime) start(ctx context.Context, b bundle.Bundle, last recovery.LastStop,
	logins map[string]registry.Login) (*daemon, string, error) {
	snapshotter := r.cfg.Snapshotter
	if snapshotter == "" {
		reason, err := overlayUnsupported(r.p.Root)
		if used := usedSnapshotter(r.p.Root); hostcheck.IsFull(err) && used != "" {
			// There is no room to try it.
			snapshotter, reason, err = used, nil, nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("choose a snapshotter: %w", recovery.WithRemedy(err))
		}
		if snapshotter == "" {
			snapshotter = snapshotterOverlay
		}
		if reason != nil {
			snapshotter = snapshotterNative
			r.log.Warn(
				"overlayfs does not work here: images are copied for each container, which takes more disk and time",
				zap.Error(reason))
		}
	}
	settings := pluginSettings(r.cfg, r.p, b, snapshotter, logins, lacksSysResource())
	if err := recovery.Repair(ctx, r.p, last, r.log); err != nil {
		return nil, "", err
	}
	d, err := startDaemon(ctx, r.p, settings, snapshotter)
	if recovery.Damaged(err) {
		// containerd found damage that our checks missed.
		if err := recovery.SetAside(ctx, r.p, err, r.log); err != nil {
			return nil, "", err
		}
		d, err = startDaemon(ctx, r.p, settings, snapshotter)
	}
	if err != nil {
		return nil, "", fmt.Errorf("start containerd: %w", recovery.WithRemedy(err))
	}
	return d, snapshotter, nil
}

// becomeReady waits for CRI, loads images and announces readiness.
func (r *Runtime) becomeReady(ctx context.Context, d *daemon, l image.Loader) error {
	select {
	case <-d.ready.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	names, err := l.Load(ctx)
	if err != nil {
		return err
	}
	if err := waitForImages(ctx, d.cri, names); err != nil {
		// The kubelet reports it too if a pod needs one of them.
		r.log.Warn("not every image on disk is usable", zap.Error(err))
	}
	r.mu.Lock()
	r.daemon, r.bundle = d, l.Bundle
	r.mu.Unlock()
	close(r.ready)
	return nil
}

// waitForImages waits until CRI knows the images. It learns of new ones by events, and answers that
// they are missing until then.
func waitForImages(ctx context.Context, cri criServer, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, imageEventsTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, name := range names {
		for {
			resp, err := call(ctx, criTimeout, cri.ImageStatus,
				&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
			if err != nil {
				return fmt.Errorf("look for loaded image %s: %w", name, err)
			}
			if resp.Image != nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("wait for image %s: %w", name, ctx.Err())
			}
		}
	}
	return nil
}
