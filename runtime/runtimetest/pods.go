package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/mote-dev/mote/runtime/image/ociarchive"
)

// BusyboxImage is the name of the image WriteBusybox packs.
const BusyboxImage = "docker.io/library/busybox:test"

// ErrNoBusybox says that Debian's static busybox is not installed.
var ErrNoBusybox = errors.New("no static /bin/busybox: apt-get install busybox-static")

// Busybox describes an image with busybox and links to some of its commands.
func Busybox() (ociarchive.Image, error) {
	if _, err := os.Stat("/bin/busybox"); err != nil {
		return ociarchive.Image{}, ErrNoBusybox
	}
	img := ociarchive.Image{
		Name:  BusyboxImage,
		Cmd:   []string{"sh"},
		Env:   []string{"PATH=/bin"},
		Files: []ociarchive.File{{Name: "bin/busybox", Mode: 0o755, Source: "/bin/busybox"}},
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "ls", "ip", "id", "true", "false", "grep"} {
		img.Files = append(img.Files, ociarchive.File{Name: "bin/" + name, Link: "busybox"})
	}
	return img, nil
}

// WriteBusybox packs the busybox image into a file.
func WriteBusybox(t testing.TB, file string) {
	t.Helper()
	img, err := Busybox()
	if err != nil {
		t.Skip(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ociarchive.WriteFile(file, img); err != nil {
		t.Fatal(err)
	}
}

// CRI is a runtime's two services.
type CRI struct {
	Runtime internalapi.RuntimeService
	Images  internalapi.ImageManagerService
}

// Dial connects to a runtime's socket.
func Dial(t testing.TB, socket string) CRI {
	t.Helper()
	ctx := t.Context()
	rt, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).WithConnectionTimeout(
		2 * time.Minute).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	im, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + socket).WithConnectionTimeout(
		2 * time.Minute).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = rt.Close(context.WithoutCancel(ctx))
		_ = im.Close(context.WithoutCancel(ctx))
	})
	return CRI{Runtime: rt, Images: im}
}

// PodOptions shape the pod RunPod starts.
type PodOptions struct {
	// CgroupParent keeps a test's cgroups apart; "" is the root.
	CgroupParent string
	// HostNetwork needs no CNI configuration.
	HostNetwork bool
	LogDir      string
}

// Pod is a running sandbox.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig
}

// RunPod starts a sandbox.
func RunPod(ctx context.Context, c CRI, name string, o PodOptions) (Pod, error) {
	mode := runtimeapi.NamespaceMode_POD
	if o.HostNetwork {
		mode = runtimeapi.NamespaceMode_NODE
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		LogDirectory: o.LogDir,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: o.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: mode, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	id, err := c.Runtime.RunPodSandbox(ctx, config, "")
	if err != nil {
		return Pod{}, fmt.Errorf("run pod: %w", err)
	}
	return Pod{ID: id, Config: config}, nil
}

// RunContainer starts a busybox container in a pod.
func RunContainer(ctx context.Context, c CRI, p Pod, name string, cmd ...string) (id string, err error) {
	id, err = c.Runtime.CreateContainer(ctx, p.ID, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: BusyboxImage},
		Command:  cmd,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions,
			},
		},
	}, p.Config)
	if err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	if err := c.Runtime.StartContainer(ctx, id); err != nil {
		return "", fmt.Errorf("start container: %w", err)
	}
	return id, nil
}

// WaitState waits until a container is in a state.
func WaitState(ctx context.Context, c CRI, id string, want runtimeapi.ContainerState) (*runtimeapi.ContainerStatus,
	error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := c.Runtime.ContainerStatus(ctx, id, false)
		if err != nil {
			return nil, fmt.Errorf("get container status: %w", err)
		}
		if resp.Status.State == want {
			return resp.Status, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("container is %s, not %s: %w", resp.Status.State, want, ctx.Err())
		}
	}
}
