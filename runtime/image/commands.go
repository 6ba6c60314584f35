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
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/mote-dev/mote/internal/atomicfile"
)

// ErrNotRunning is wrapped when no container runtime answers for a data folder.
var ErrNotRunning = errors.New("no mote runs over this data folder: start it, or give its --data-dir")

// ErrNoImage is wrapped when an image to remove is not there.
var ErrNoImage = errors.New("no such image")

const dialTimeout = 3 * time.Second

// connection is a client of a running mote's containerd, and a context that ends
// when that mote does: containerd's client would wait for it to come back.
type connection struct {
	*containerd.Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  sync.WaitGroup
}

// connect reaches the containerd of a running mote by its agent's data folder.
func connect(ctx context.Context, agentDir string) (*connection, error) {
	socket := SocketPath(agentDir)
	// gRPC would only report a dead socket with the first call.
	probe, err := net.DialTimeout("unix", socket, dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(k8sNamespace), containerd.WithTimeout(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotRunning, socket, err)
	}
	c := &connection{Client: client}
	// The client logs what it also returns.
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	ctx = log.WithLogger(ctx, logrus.NewEntry(quiet))
	c.ctx, c.cancel = context.WithCancelCause(namespaces.WithNamespace(ctx, k8sNamespace))
	if conn, ok := client.Conn().(*grpc.ClientConn); ok {
		c.watch.Go(func() {
			for state := conn.GetState(); conn.WaitForStateChange(c.ctx, state); state = conn.GetState() {
				if now := conn.GetState(); now == connectivity.TransientFailure || state == connectivity.Ready && now != connectivity.Ready {
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

// explain puts the reason a connection ended in place of what a call says of it.
func (c *connection) explain(err error) error {
	if cause := context.Cause(c.ctx); err != nil && errors.Is(cause, ErrNotRunning) {
		return cause
	}
	return err
}

// ImportOptions say what to import and how.
type ImportOptions struct {
	// AgentDir is the agent's data folder, <data-dir>/agent. Required.
	AgentDir string
	// Progress, if set, hears how many bytes of how many were read. The archive
	// is read twice, first to check it.
	Progress func(done, total int64)
	// Forget does not keep the archive: its images cannot be rebuilt if a power
	// cut damages them, but it takes its space on disk only until it is imported.
	Forget bool
}

// Import imports an image archive into a running mote and returns the names of
// its images. They are pinned: the kubelet never removes them for want of space.
// A file that is no image, or a damaged one, is refused with ErrNotAnImage before
// anything changed. A copy of the archive is kept in the images folder.
func Import(ctx context.Context, file string, o ImportOptions) ([]string, error) {
	c, err := connect(ctx, o.AgentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	names, err := importKept(c.ctx, c.Client, file, o)
	return names, c.explain(err)
}

// ImportFrom is Import from a stream, which is written to the images folder
// first, as it is read twice.
func ImportFrom(ctx context.Context, r io.Reader, o ImportOptions) ([]string, error) {
	c, err := connect(ctx, o.AgentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	dir := keptDir(o.AgentDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create folder for image archives: %w", err)
	}
	f, err := os.CreateTemp(dir, ".stdin-*.tar")
	if err != nil {
		return nil, fmt.Errorf("store image archive: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("store image archive: %w", err)
	}
	names, err := importKept(c.ctx, c.Client, f.Name(), o)
	return names, c.explain(err)
}

func importKept(ctx context.Context, client *containerd.Client, file string, o ImportOptions) ([]string, error) {
	progress := o.Progress
	if progress == nil {
		progress = func(int64, int64) {}
	}
	snapshotter, err := snapshotterOf(ctx, client)
	if err != nil {
		return nil, err
	}
	rec, err := loadFile(ctx, client, snapshotter, file, progress)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", file, err)
	}
	if !o.Forget {
		if err := keep(o.AgentDir, file, rec); err != nil {
			return nil, fmt.Errorf("images are imported, but their archive is not kept: %w", err)
		}
	}
	var names []string
	for name := range rec.Images {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// snapshotterOf asks a running containerd which of its snapshotters it runs.
func snapshotterOf(ctx context.Context, client *containerd.Client) (string, error) {
	resp, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return "", fmt.Errorf("ask for the snapshotter: %w", err)
	}
	for _, p := range resp.Plugins {
		if p.InitErr == nil {
			return p.ID, nil
		}
	}
	return "", errors.New("ask for the snapshotter: containerd runs none")
}

func keptDir(agentDir string) string {
	c := Config{DataDir: agentDir}.withDefaults()
	return c.paths().archives
}

// keep puts a copy of an archive where the next start looks for archives, with
// the record that it is loaded already. File systems that can share the blocks
// of two files do. The copy's name is its hash, so importing a file again does
// not keep it twice.
func keep(agentDir, file string, rec archiveRecord) error {
	dir := keptDir(agentDir)
	if strings.HasPrefix(filepath.Clean(file), filepath.Dir(dir)+"/") && !strings.HasPrefix(filepath.Base(file), ".") {
		return nil // it lies in the images folder already
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create folder for image archives: %w", err)
	}
	target := filepath.Join(dir, rec.SHA256[:16]+".tar")
	if err := copyFile(file, target); err != nil {
		return err
	}
	info, err := os.Stat(target)
	if err != nil {
		return fmt.Errorf("find kept archive: %w", err)
	}
	rec.Path, rec.ModTime = target, info.ModTime()
	c := Config{DataDir: agentDir}.withDefaults()
	return writeRecord(filepath.Join(c.paths().marks, loadedDir, recordName(target)), rec)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("open image archive: %w", err)
	}
	defer in.Close()
	temp := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".tmp")
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("keep image archive: %w", err)
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) != nil {
		_, err = io.Copy(out, in)
	}
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("keep image archive: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, to); err != nil {
		return fmt.Errorf("keep image archive: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}

// ImageInfo is one image of a running mote.
type ImageInfo struct {
	Name   string
	Digest string
	Size   int64
	// Origin is "bundled", "imported", or "pulled".
	Origin string
	// Pinned images are not removed for want of space.
	Pinned  bool
	Created time.Time
}

// List returns the images of a running mote by name. The records under which
// CRI also knows each image, by digest and by id, are left out.
func List(ctx context.Context, agentDir string) ([]ImageInfo, error) {
	c, err := connect(ctx, agentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	list, err := listNamed(c.ctx, c.Client)
	return list, c.explain(err)
}

func listNamed(ctx context.Context, client *containerd.Client) ([]ImageInfo, error) {
	records, err := client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []ImageInfo
	for _, r := range records {
		if strings.HasPrefix(r.Name, "sha256:") || strings.Contains(r.Name, "@") {
			continue
		}
		size, err := r.Size(ctx, client.ContentStore(), platforms.Default())
		if err != nil {
			return nil, fmt.Errorf("measure image %s: %w", r.Name, err)
		}
		origin := r.Labels[labelOrigin]
		if origin == "" {
			origin = "pulled"
		}
		list = append(list, ImageInfo{
			Name:    r.Name,
			Digest:  r.Target.Digest.String(),
			Size:    size,
			Origin:  origin,
			Pinned:  r.Labels[labelPinned] == labelPinnedValue,
			Created: r.CreatedAt,
		})
	}
	slices.SortFunc(list, func(a, b ImageInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Remove removes images by name from a running mote, with their kept archives
// once none of an archive's images is left. A running container keeps its files.
func Remove(ctx context.Context, agentDir string, names ...string) error {
	c, err := connect(ctx, agentDir)
	if err != nil {
		return err
	}
	defer c.close()
	for _, name := range names {
		if err := removeImage(c.ctx, c.Client, name); err != nil {
			return c.explain(err)
		}
	}
	return c.explain(forgetKept(c.ctx, c.Client, agentDir))
}

func removeImage(ctx context.Context, client *containerd.Client, name string) error {
	if ref, err := reference.ParseDockerRef(name); err == nil {
		name = ref.String()
	}
	store := client.ImageService()
	img, err := store.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", name, ErrNoImage)
	}
	if err != nil {
		return fmt.Errorf("look for image %s: %w", name, err)
	}
	if img.Labels[labelOrigin] == originBundled {
		return fmt.Errorf("remove image %s: every pod needs it", name)
	}
	if err := store.Delete(ctx, name); err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	// The records by digest and id go with the last name.
	records, err := store.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var rest []images.Image
	for _, r := range records {
		if r.Target.Digest != img.Target.Digest {
			continue
		}
		if !strings.HasPrefix(r.Name, "sha256:") && !strings.Contains(r.Name, "@") {
			return nil
		}
		rest = append(rest, r)
	}
	for _, r := range rest {
		if err := store.Delete(ctx, r.Name, images.SynchronousDelete()); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove image %s: %w", r.Name, err)
		}
	}
	return nil
}

// forgetKept removes kept archives none of whose images exist any more.
func forgetKept(ctx context.Context, client *containerd.Client, agentDir string) error {
	c := Config{DataDir: agentDir}.withDefaults()
	archives, err := listArchives(keptDir(agentDir))
	if err != nil {
		return err
	}
	for _, file := range archives {
		record := filepath.Join(c.paths().marks, loadedDir, recordName(file))
		rec, err := readRecord(record)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		before := len(rec.Images)
		for name := range rec.Images {
			if _, err := client.ImageService().Get(ctx, name); errdefs.IsNotFound(err) {
				delete(rec.Images, name) // or the next start would load it again
			}
		}
		if len(rec.Images) == before {
			continue
		}
		if len(rec.Images) > 0 {
			if err := writeRecord(record, rec); err != nil {
				return err
			}
			continue
		}
		if err := errors.Join(os.Remove(file), os.Remove(record)); err != nil {
			return fmt.Errorf("remove kept archive: %w", err)
		}
	}
	return nil
}
