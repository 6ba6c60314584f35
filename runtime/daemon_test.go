package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/ttrpc"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/image"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/runtime/recovery"
)

func TestReadiness_WaitsForAll(t *testing.T) {
	r := newReadiness()
	isDone := func() bool {
		select {
		case <-r.done:
			return true
		default:
			return false
		}
	}
	first, second := r.register(), r.register()
	first()
	first() // a second report of the same plugin counts once
	r.release()
	if isDone() {
		t.Error("ready before the second plugin is")
	}
	second()
	if !isDone() {
		t.Error("not ready after all plugins are")
	}
}

type failingCloser struct{ err error }

func (c failingCloser) Close() error { return c.err }

// The error that ended the runtime comes before that of the close, which may follow from it.
func TestRuntime_Serve_FirstCauseFirst(t *testing.T) {
	first, second := errors.New("database is full"), errors.New("close failed")
	for _, row := range []struct {
		name   string
		cancel bool
		want   error
	}{
		{name: "a part fails", want: first},
		{name: "asked to stop", cancel: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			shims, err := ttrpc.NewServer()
			if err != nil {
				t.Fatal(err)
			}
			closer := plugin.Registration{
				Type:   plugins.ServicePlugin,
				ID:     "test",
				InitFn: func(*plugin.InitContext) (any, error) { return failingCloser{second}, nil },
			}
			d := &daemon{
				plugins: []*plugin.Plugin{closer.Init(plugin.NewContext(t.Context(), plugin.NewPluginSet(), nil))},
				grpc:    grpc.NewServer(),
				ttrpc:   shims,
				ready:   newReadiness(),
				stop:    func() {},
			}
			r := &Runtime{
				log: zap.NewNop(),
				p:   layout.Paths{Socket: filepath.Join(dir, "main"), TTRPC: filepath.Join(dir, "shims")},
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			fatal := make(chan error, 1)
			if row.cancel {
				cancel()
			} else {
				fatal <- first
			}
			err = r.serve(ctx, d, image.Loader{}, recovery.LastStop{}, nil, fatal)
			if !errors.Is(err, second) || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("error is %v, want %v and %v", err, row.want, second)
			}
			if row.want != nil && !strings.HasPrefix(err.Error(), row.want.Error()) {
				t.Errorf("error is %v: the first cause is not first", err)
			}
		})
	}
}

// A disk that is full, say, must not make a node switch to the snapshotter that copies.
func TestMeansNoOverlay(t *testing.T) {
	for _, row := range []struct {
		err  error
		want bool
	}{
		{unix.ENODEV, true}, {unix.EINVAL, true}, {unix.EPERM, true}, {unix.EOPNOTSUPP, true}, {unix.ENOSYS, true},
		{unix.ENOSPC, false}, {unix.EROFS, false}, {unix.EIO, false}, {unix.EMFILE, false}, {unix.ENOMEM, false},
		{nil, false},
	} {
		if got := hostcheck.MeansNoOverlay(fmt.Errorf("failed to mount overlay: %w", row.err)); got != row.want {
			t.Errorf("%v means that overlayfs does not work: %v, want %v", row.err, got, row.want)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if reason, err := overlayUnsupported(file); reason != nil || err == nil {
		t.Errorf("a check that fails gives reason %v, error %v; want an error only", reason, err)
	}
}

// What a full disk leaves no room to try was tried before.
func TestUsedSnapshotter(t *testing.T) {
	for _, test := range []struct {
		name string
		has  []string
		want string
	}{
		{"none yet", nil, ""},
		{"overlayfs", []string{"overlayfs"}, "overlayfs"},
		{"copies", []string{"native"}, "native"},
		{"both", []string{"overlayfs", "native"}, ""},
	} {
		root := t.TempDir()
		for _, name := range test.has {
			if err := os.Mkdir(filepath.Join(root, layout.Snapshotter+name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if got := usedSnapshotter(root); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
