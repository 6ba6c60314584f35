package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/runtime/layout"
)

// ImportOptions configure an import.
type ImportOptions struct {
	// AgentDir is the agent's data folder, <data-dir>/agent. Required.
	AgentDir string
	// Progress, if set, is called with the bytes read so far and in total. The archive is read
	// twice, first to check it.
	Progress func(done, total int64)
	// Forget does not keep a copy of the archive. That saves its space on disk, but the images
	// cannot be loaded again if a power cut damages them.
	Forget bool
	// Unnamed, if set, is called with the digest of each image that is left out for want of a name.
	Unnamed func(digest string)
}

// Import imports an image archive into a running mote and returns the names of its images. They are
// pinned: the kubelet never removes them to free space. A file that is not an image archive, or a
// damaged one, is refused with ErrNotAnImage before anything changes. A copy of the archive is kept
// in the images folder.
func Import(ctx context.Context, file string, o ImportOptions) ([]string, error) {
	c, err := connect(ctx, o.AgentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	names, err := importKept(c.ctx, c.Client, file, o)
	return names, c.explain(err)
}

// ImportFrom is Import from a stream. The stream is written to the images folder first, as it is
// read twice.
func ImportFrom(ctx context.Context, r io.Reader, o ImportOptions) ([]string, error) {
	c, err := connect(ctx, o.AgentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	dir := layout.For(o.AgentDir).Imported
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create folder for image archives: %w", err)
	}
	f, err := os.CreateTemp(dir, ".stdin-*.tar")
	if err != nil {
		return nil, fmt.Errorf("store image archive: %w", err)
	}
	defer os.Remove(f.Name())
	disk := disk{path: dir, statfs: unix.Statfs}
	if err := errors.Join(disk.fill(f, r), f.Close()); err != nil {
		return nil, fmt.Errorf("store image archive: %w", disk.explain(err, 0))
	}
	names, err := importKept(c.ctx, c.Client, f.Name(), o)
	return names, c.explain(err)
}

func importKept(ctx context.Context, client *containerd.Client, file string, o ImportOptions) ([]string, error) {
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if o.Unnamed == nil {
		o.Unnamed = func(string) {}
	}
	snapshotter, err := snapshotterOf(ctx, client)
	if err != nil {
		return nil, err
	}
	rec, err := importer{
		client:      client,
		snapshotter: snapshotter,
		disk:        diskOf(layout.For(o.AgentDir)),
		progress:    o.Progress,
		unnamed:     o.Unnamed,
	}.load(ctx, file)
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

// snapshotterOf returns the snapshotter of a running containerd.
func snapshotterOf(ctx context.Context, client *containerd.Client) (string, error) {
	resp, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
	if err != nil {
		return "", fmt.Errorf("find the snapshotter: %w", err)
	}
	for _, p := range resp.Plugins {
		if p.InitErr == nil {
			return p.ID, nil
		}
	}
	return "", errors.New("find the snapshotter: containerd runs none")
}

// keep copies an archive to where the next start looks for archives, with the record that it is
// loaded already. The copy shares the blocks of the file if the file system supports that. Its name
// is its hash, so a file that is imported again is not kept twice.
func keep(agentDir, file string, rec archiveRecord) error {
	dir := layout.For(agentDir).Imported
	if strings.HasPrefix(filepath.Clean(file), filepath.Dir(dir)+"/") && !strings.HasPrefix(filepath.Base(file), ".") {
		return nil // it is in the images folder already
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
	return writeRecord(filepath.Join(layout.For(agentDir).Marks, loadedDir, recordName(target)), rec)
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
		disk := disk{path: filepath.Dir(to), statfs: unix.Statfs}
		err = disk.explain(disk.fill(out, in), 0)
	}
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("keep image archive: %w", err), os.Remove(temp))
	}
	if err := os.Rename(temp, to); err != nil {
		return fmt.Errorf("keep image archive: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}
