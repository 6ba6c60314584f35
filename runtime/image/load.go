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
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
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

	// verify compares the hashes of all content instead of sizes.
	verify bool
}

// Load clears what unfinished work left, rebuilds the images of records that were set aside, and
// loads what is missing. It returns the names of all images that were checked or loaded.
func (l Loader) Load(ctx context.Context) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, layout.Namespace)
	if err := dropImportLeases(ctx, l.Client); err != nil {
		return nil, err
	}
	// Before anything triggers containerd's garbage collector, which removes content without a
	// record.
	rebuilt, err := l.rebuild(ctx)
	if err != nil {
		return nil, err
	}
	names, err := l.loadMissing(ctx)
	return append(rebuilt, names...), err
}

// Verify checks all images by hash, where Load compares sizes, and loads damaged ones again.
// Reading everything takes long on a slow disk, and damaged content only matters when it is
// unpacked next, so run it while the node works.
func (l Loader) Verify(ctx context.Context) error {
	l.verify = true
	_, err := l.loadMissing(namespaces.WithNamespace(ctx, layout.Namespace))
	return err
}

// loadMissing loads the bundled images and then every archive of the images folder and its folder
// of imported ones, unless their images exist and are intact. A bad archive is logged and skipped:
// it must not keep the node from starting.
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
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			l.Log.Error("image archive was not loaded", zap.String("file", file), zap.Error(err))
		}
		names = append(names, loaded...)
	}
	return names, l.forgetRecords(known)
}

// loadBundled makes sure the pause image exists and is intact.
func (l Loader) loadBundled(ctx context.Context) error {
	name := l.Bundle.Manifest.PauseImage
	img, err := l.Client.ImageService().Get(ctx, name)
	switch {
	case err == nil:
		err = l.intact(ctx, img.Target)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNotIntact) {
			return fmt.Errorf("check image %s: %w", name, err)
		}
		l.Log.Warn("bundled image is damaged: loading it again", zap.String("image", name), zap.Error(err))
	case !errdefs.IsNotFound(err):
		return fmt.Errorf("look up image %s: %w", name, err)
	}
	f, err := os.Open(l.Bundle.Path(bundle.PauseArchive))
	if err != nil {
		return fmt.Errorf("open bundled image: %w", err)
	}
	defer f.Close()
	// It is needed even on a full disk.
	plan, err := checkArchive(f, thisMachine(), math.MaxInt64)
	if err != nil {
		return fmt.Errorf("load bundled image %s: %w", name, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("load bundled image %s: %w", name, err)
	}
	if _, err := importChecked(ctx, l.Client, l.Snapshotter, f, plan, originBundled); err != nil {
		return fmt.Errorf("load bundled image %s: %w", name, err)
	}
	return nil
}

// loadArchive loads one archive unless it was loaded or refused before and nothing has changed. A
// file that is no image archive is reported once, a bad one at each start, but read only once.
func (l Loader) loadArchive(ctx context.Context, file string) ([]string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("find image archive: %w", err)
	}
	recordFile := filepath.Join(l.Paths.Marks, loadedDir, recordName(file))
	rec, err := readRecord(recordFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errBadRecord):
		// It is loaded as if for the first time.
	case err != nil:
		return nil, err
	case rec.Size != info.Size() || !rec.ModTime.Equal(info.ModTime()):
	case rec.Refusal != nil && rec.Refusal.Rules == refusalRules:
		return nil, rec.Refusal.again(l.verify)
	case rec.Refusal == nil:
		err := l.unchanged(ctx, rec)
		if err == nil {
			return slices.Collect(maps.Keys(rec.Images)), nil
		}
		if !errors.Is(err, errNotIntact) {
			return nil, err
		}
		l.Log.Warn("image is damaged or gone: loading its archive again", zap.String("file", file), zap.Error(err))
	}
	start := time.Now()
	rec, err = importer{
		client:      l.Client,
		snapshotter: l.Snapshotter,
		disk:        diskOf(l.Paths),
		progress:    func(done, total int64) { l.Progress("import", filepath.Base(file), done, total) },
		unnamed: func(digest string) {
			l.Log.Warn("image of an archive has no name: left out", zap.String("file", file),
				zap.String("image", digest))
		},
	}.load(ctx, file)
	if errors.Is(err, ErrNotAnImage) {
		return nil, l.refuse(recordFile, file, info, err)
	}
	if err != nil {
		return nil, err
	}
	l.Log.Info("loaded image archive", zap.String("file", file), zap.Int("images", len(rec.Images)),
		zap.Duration("took", time.Since(start)))
	return slices.Collect(maps.Keys(rec.Images)), writeRecord(recordFile, rec)
}

// refuse records why a file was refused. It returns the error of an archive; what is none is only
// reported.
func (l Loader) refuse(recordFile, file string, info fs.FileInfo, reason error) error {
	rec := archiveRecord{
		Path:    file,
		Size:    info.Size(),
		ModTime: info.ModTime(),
		Refusal: &refusal{
			Reason:    reason.Error(),
			NoArchive: errors.Is(reason, errNoArchive),
			Rules:     refusalRules,
		},
	}
	if rec.Refusal.NoArchive {
		l.Log.Warn("file in the images folder is skipped", zap.String("file", file), zap.Error(reason))
		reason = nil
	}
	return errors.Join(reason, writeRecord(recordFile, rec))
}

// unchanged returns [errNotIntact] if an archive's images must be loaded again.
func (l Loader) unchanged(ctx context.Context, rec archiveRecord) error {
	for name, target := range rec.Images {
		img, err := l.Client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return fmt.Errorf("%w: %s is gone", errNotIntact, name)
		}
		if err != nil {
			return fmt.Errorf("look up image %s: %w", name, err)
		}
		if img.Target.Digest != target.Digest {
			continue // replaced by a later pull or import: that is the user's choice
		}
		if err := l.intact(ctx, img.Target); err != nil {
			return fmt.Errorf("check image %s: %w", name, err)
		}
	}
	return nil
}

// errNotIntact is wrapped when an image lacks content or a snapshot, or its content is damaged. An
// image that could not be read is not that: it is neither removed nor loaded again.
var errNotIntact = errors.New("image is not intact")

// intact checks that all content of an image is on disk as its descriptors say, and that it is
// unpacked. It removes damaged content, as containerd takes a file with the right name for the
// right content.
func (l Loader) intact(ctx context.Context, target v1.Descriptor) error {
	cs := l.Client.ContentStore()
	var damage []error
	handler := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		err := l.checkBlob(ctx, cs, d)
		if errors.Is(err, errNotIntact) {
			damage = append(damage, err)
			return nil, images.ErrSkipDesc
		}
		if err != nil {
			return nil, err
		}
		children, err := childrenFor(ctx, cs, d, thisMachine())
		if errdefs.IsNotFound(err) { // the file exists, containerd's record of it does not
			damage = append(damage, fmt.Errorf("%w: %w", errNotIntact, err))
			return nil, images.ErrSkipDesc
		}
		return children, err
	})
	if err := images.Walk(ctx, handler, target); err != nil {
		return err
	}
	if len(damage) > 0 {
		return errors.Join(damage...)
	}
	unpacked, err := containerd.NewImage(l.Client, images.Image{Name: "check", Target: target}).IsUnpacked(ctx,
		l.Snapshotter)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("check whether it is unpacked: %w", err)
	}
	if !unpacked {
		return fmt.Errorf("%w: it is not unpacked", errNotIntact)
	}
	return nil
}

// checkBlob compares the size of a blob with its descriptor, and its hash if it is read as JSON or
// the whole image is to be verified. A missing or damaged one is removed.
func (l Loader) checkBlob(ctx context.Context, cs content.Store, d v1.Descriptor) error {
	file := filepath.Join(l.Paths.Root, layout.Content, blobName(d.Digest))
	damage, err := findBlobDamage(file, d, l.verify || d.Size <= maxJSON && !images.IsLayerType(d.MediaType))
	if err != nil || damage == nil {
		return err
	}
	return errors.Join(damage, dropBlob(ctx, cs, file, d))
}

// findBlobDamage returns what is wrong with the content in a file, as [errNotIntact], or why that
// could not be found out.
func findBlobDamage(file string, d v1.Descriptor, hash bool) (damage, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: content %s is missing", errNotIntact, d.Digest), nil
	}
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	if info.Size() != d.Size {
		return fmt.Errorf("%w: content %s has %d bytes, not %d", errNotIntact, d.Digest, info.Size(), d.Size), nil
	}
	if !hash {
		return nil, nil
	}
	verifier := d.Digest.Verifier()
	if _, err := io.Copy(verifier, f); err != nil {
		return nil, fmt.Errorf("read content %s: %w", d.Digest, err)
	}
	if !verifier.Verified() {
		return fmt.Errorf("%w: content %s does not match its digest", errNotIntact, d.Digest), nil
	}
	return nil, nil
}

// dropBlob makes containerd forget a blob and removes what there is of it.
func dropBlob(ctx context.Context, cs content.Store, file string, d v1.Descriptor) error {
	if err := cs.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget damaged content: %w", err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove damaged content: %w", err)
	}
	return nil
}

// importer imports archives into a containerd.
type importer struct {
	client      *containerd.Client
	snapshotter string
	disk        disk
	// progress is called with the bytes read so far and in total.
	progress func(done, total int64)
	// unnamed is called with the digest of each image that is left out for want of a name.
	unnamed func(digest string)
}

// load checks an archive and imports it. It reads the archive twice, so that a refused one has
// changed nothing.
func (i importer) load(ctx context.Context, file string) (archiveRecord, error) {
	// Opening a pipe that nobody writes to would block.
	info, err := os.Stat(file)
	if err != nil {
		return archiveRecord{}, fmt.Errorf("open image archive: %w", err)
	}
	if !info.Mode().IsRegular() {
		return archiveRecord{}, noArchive("%s is not a regular file", file)
	}
	f, err := os.Open(file)
	if err != nil {
		return archiveRecord{}, fmt.Errorf("open image archive: %w", err)
	}
	defer f.Close()
	room, err := i.disk.room()
	if err != nil {
		return archiveRecord{}, err
	}
	total := 2 * info.Size()
	sum := sha256.New()
	counted := &countingReader{r: io.TeeReader(f, sum), total: total, progress: i.progress}
	plan, err := checkArchive(counted, thisMachine(), room)
	if err != nil {
		return archiveRecord{}, i.disk.explain(err, plan.content+plan.unpacked)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return archiveRecord{}, fmt.Errorf("read image archive: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return archiveRecord{}, fmt.Errorf("read image archive again: %w", err)
	}
	counted.r = f
	var names []string
	if err := i.disk.guard(ctx, func(ctx context.Context) error {
		names, err = importChecked(ctx, i.client, i.snapshotter, counted, plan, originImported)
		return err
	}); err != nil {
		return archiveRecord{}, i.disk.explain(err, 0)
	}
	i.progress(total, total)
	for _, digest := range plan.unnamed {
		i.unnamed(digest)
	}
	rec := archiveRecord{
		Path:    file,
		Size:    info.Size(),
		ModTime: info.ModTime(),
		SHA256:  hex.EncodeToString(sum.Sum(nil)),
		Images:  map[string]v1.Descriptor{},
	}
	for _, name := range names {
		img, err := i.client.ImageService().Get(namespaces.WithNamespace(ctx, layout.Namespace), name)
		if err != nil {
			return archiveRecord{}, fmt.Errorf("look for imported image: %w", err)
		}
		rec.Images[name] = img.Target
	}
	return rec, nil
}

// countingReader reports progress every few megabytes.
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
