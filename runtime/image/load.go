package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
)

// Loader loads image archives into a running containerd. All exported fields are required.
type Loader struct {
	Client      *containerd.Client
	Snapshotter string
	Bundle      bundle.Bundle
	Paths       layout.Paths
	Log         *zap.Logger
	// Progress is called while an archive is read.
	Progress func(phase, name string, done, total int64)

	// verify reads all content of the images and compares hashes; otherwise sizes
	// are compared.
	verify bool
}

// Load clears what unfinished work left, and then loads what is missing. It
// returns the names of all images that were checked or loaded.
func (l Loader) Load(ctx context.Context) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, layout.Namespace)
	if err := dropImportLeases(ctx, l.Client); err != nil {
		return nil, err
	}
	// First, while nothing gives containerd a reason to collect what it does not
	// know.
	rebuilt, err := l.rebuild(ctx)
	if err != nil {
		return nil, err
	}
	names, err := l.loadMissing(ctx)
	return append(rebuilt, names...), err
}

// Verify is loadMissing by hashes instead of sizes. Reading everything takes
// long on a slow disk, and damaged content harms only what is unpacked from it
// next, so this is done while the node works.
func (l Loader) Verify(ctx context.Context) error {
	l.verify = true
	_, err := l.loadMissing(namespaces.WithNamespace(ctx, layout.Namespace))
	return err
}

// loadMissing loads the bundled images and then every archive of the images
// folder and its folder of imported ones, unless their images are there and
// whole. A bad archive is reported and passed over: it must not keep the node
// from starting.
func (l Loader) loadMissing(ctx context.Context) ([]string, error) {
	if err := l.loadBundled(ctx); err != nil {
		return nil, err
	}
	archives, err := listArchives(l.Paths.Images, l.Paths.Imported)
	if err != nil {
		return nil, err
	}
	names := []string{l.Bundle.Manifest.PauseImage}
	known := map[string]bool{}
	for _, file := range archives {
		known[recordName(file)] = true
		loaded, err := l.loadArchive(ctx, file)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			l.Log.Error("image archive was not loaded", zap.String("file", file), zap.Error(err))
		}
		names = append(names, loaded...)
	}
	return names, l.forgetRecords(known)
}

// loadBundled makes sure the pause image is there and whole.
func (l Loader) loadBundled(ctx context.Context) error {
	name := l.Bundle.Manifest.PauseImage
	img, err := l.Client.ImageService().Get(ctx, name)
	if err == nil {
		if err = l.whole(ctx, img.Target); err == nil {
			return nil
		}
		l.Log.Warn("bundled image is damaged: loading it again", zap.String("image", name), zap.Error(err))
	} else if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for image %s: %w", name, err)
	}
	f, err := os.Open(l.Bundle.Path(bundle.PauseArchive))
	if err != nil {
		return fmt.Errorf("open bundled image: %w", err)
	}
	defer f.Close()
	if _, err := importChecked(ctx, l.Client, l.Snapshotter, f, originBundled); err != nil {
		return fmt.Errorf("load bundled image %s: %w", name, err)
	}
	return nil
}

// loadArchive loads one archive unless it was loaded before and nothing changed.
func (l Loader) loadArchive(ctx context.Context, file string) ([]string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("find image archive: %w", err)
	}
	recordFile := filepath.Join(l.Paths.Marks, loadedDir, recordName(file))
	if rec, err := readRecord(recordFile); err == nil && rec.Size == info.Size() && rec.ModTime.Equal(info.ModTime()) {
		err := l.unchanged(ctx, rec)
		if err == nil {
			return slices.Collect(maps.Keys(rec.Images)), nil
		}
		l.Log.Warn("image is not whole: loading its archive again", zap.String("file", file), zap.Error(err))
	}
	start := time.Now()
	rec, err := loadFile(ctx, l.Client, l.Snapshotter, file, func(done, total int64) {
		l.Progress("import", filepath.Base(file), done, total)
	})
	if err != nil {
		return nil, err
	}
	l.Log.Info("loaded image archive", zap.String("file", file), zap.Int("images", len(rec.Images)), zap.Duration("took", time.Since(start)))
	return slices.Collect(maps.Keys(rec.Images)), writeRecord(recordFile, rec)
}

// unchanged reports why an archive's images must be loaded again, or nil.
func (l Loader) unchanged(ctx context.Context, rec archiveRecord) error {
	for name, target := range rec.Images {
		img, err := l.Client.ImageService().Get(ctx, name)
		if err != nil {
			return fmt.Errorf("look for image %s: %w", name, err)
		}
		if img.Target.Digest != target.Digest {
			continue // replaced by a later pull or import: that is the user's choice
		}
		if err := l.whole(ctx, img.Target); err != nil {
			return fmt.Errorf("check image %s: %w", name, err)
		}
	}
	return nil
}

// whole checks that all content of an image is on disk as its descriptors say,
// and that it is unpacked. Damaged content is removed on the way, as containerd
// takes a file with the right name for the right content.
func (l Loader) whole(ctx context.Context, target v1.Descriptor) error {
	cs := l.Client.ContentStore()
	var errs []error
	handler := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if err := l.checkBlob(ctx, cs, d); err != nil {
			errs = append(errs, err)
			return nil, images.ErrSkipDesc
		}
		return images.Children(ctx, cs, d)
	})
	if err := images.Walk(ctx, images.FilterPlatforms(handler, platforms.Default()), target); err != nil {
		return err
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	unpacked, err := containerd.NewImage(l.Client, images.Image{Name: "check", Target: target}).IsUnpacked(ctx, l.Snapshotter)
	if err != nil {
		return fmt.Errorf("check whether it is unpacked: %w", err)
	}
	if !unpacked {
		return errors.New("it is not unpacked")
	}
	return nil
}

func (l Loader) checkBlob(ctx context.Context, cs content.Store, d v1.Descriptor) error {
	file := filepath.Join(l.Paths.Root, layout.Content, blobName(d.Digest))
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("find content: %w", errors.Join(err, l.dropBlob(ctx, cs, file, d)))
	}
	if info.Size() != d.Size {
		return errors.Join(fmt.Errorf("content %s has %d bytes, not %d", d.Digest, info.Size(), d.Size), l.dropBlob(ctx, cs, file, d))
	}
	if !l.verify {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open content: %w", err)
	}
	defer f.Close()
	verifier := d.Digest.Verifier()
	if _, err := io.Copy(verifier, f); err != nil {
		return errors.Join(fmt.Errorf("read content %s: %w", d.Digest, err), l.dropBlob(ctx, cs, file, d))
	}
	if !verifier.Verified() {
		return errors.Join(fmt.Errorf("content %s is damaged", d.Digest), l.dropBlob(ctx, cs, file, d))
	}
	return nil
}

// dropBlob makes containerd forget a blob and removes what there is of it.
func (l Loader) dropBlob(ctx context.Context, cs content.Store, file string, d v1.Descriptor) error {
	if err := cs.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget damaged content: %w", err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove damaged content: %w", err)
	}
	return nil
}

// loadFile checks an archive and imports it. The archive is read twice: what is
// refused must not have changed anything.
func loadFile(ctx context.Context, client *containerd.Client, snapshotter, file string, progress func(done, total int64)) (archiveRecord, error) {
	f, err := os.Open(file)
	if err != nil {
		return archiveRecord{}, fmt.Errorf("open image archive: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return archiveRecord{}, fmt.Errorf("open image archive: %w", err)
	}
	if !info.Mode().IsRegular() {
		return archiveRecord{}, notAnImage("%s is not a regular file", file)
	}
	total := 2 * info.Size()
	sum := sha256.New()
	counted := &countingReader{r: io.TeeReader(f, sum), total: total, progress: progress}
	if _, err := checkArchive(counted); err != nil {
		return archiveRecord{}, err
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return archiveRecord{}, fmt.Errorf("read image archive: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return archiveRecord{}, fmt.Errorf("read image archive again: %w", err)
	}
	counted.r = f
	names, err := importChecked(ctx, client, snapshotter, counted, originImported)
	if err != nil {
		return archiveRecord{}, err
	}
	progress(total, total)
	rec := archiveRecord{
		Path:    file,
		Size:    info.Size(),
		ModTime: info.ModTime(),
		SHA256:  hex.EncodeToString(sum.Sum(nil)),
		Images:  map[string]v1.Descriptor{},
	}
	for _, name := range names {
		img, err := client.ImageService().Get(namespaces.WithNamespace(ctx, layout.Namespace), name)
		if err != nil {
			return archiveRecord{}, fmt.Errorf("look for imported image: %w", err)
		}
		rec.Images[name] = img.Target
	}
	return rec, nil
}

// countingReader reports how far a reader is, at most every so many bytes.
type countingReader struct {
	r           io.Reader
	done, total int64
	reported    int64
	progress    func(done, total int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.done-c.reported >= 4<<20 {
		c.reported = c.done
		c.progress(c.done, c.total)
	}
	return n, err
}
