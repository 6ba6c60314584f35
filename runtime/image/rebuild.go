package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/runtime/layout"
)

const (
	// imageList, in Paths.Marks, is a copy of the list of images. containerd stores the list in one
	// file with everything else. If that file is lost, a node without a registry rebuilds its
	// images from this copy and the content, which is named by its hash.
	imageList = "images.json"
	// listDelay is how long a change waits to be written: a pull changes several records.
	listDelay = time.Second
)

// imageRecord is one image in the list.
type imageRecord struct {
	Name   string            `json:"name"`
	Target v1.Descriptor     `json:"target"`
	Labels map[string]string `json:"labels,omitempty"`
}

// KeepList writes the list of images for a later rebuild, now and after each change, until the
// context ends. A failed write is logged, and made up for with the next change.
func KeepList(ctx context.Context, client *containerd.Client, p layout.Paths, log *zap.Logger) error {
	ctx = namespaces.WithNamespace(ctx, layout.Namespace)
	events, failed := client.Subscribe(ctx, `topic~="/images/"`)
	var last []byte
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-due.C:
			data, err := listImages(ctx, client)
			if err == nil && !slices.Equal(data, last) {
				if err = atomicfile.Write(filepath.Join(p.Marks, imageList), data, 0o600); err == nil {
					last = data
				}
			}
			if err != nil && ctx.Err() == nil {
				log.Warn("list of images was not written", zap.Error(err))
			}
		case <-events:
			due.Reset(listDelay)
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch images: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

func listImages(ctx context.Context, client *containerd.Client) ([]byte, error) {
	found, err := client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	records := make([]imageRecord, 0, len(found))
	for _, img := range found {
		records = append(records, imageRecord{Name: img.Name, Target: img.Target, Labels: img.Labels})
	}
	slices.SortFunc(records, func(a, b imageRecord) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode list of images: %w", err)
	}
	return data, nil
}

// rebuild restores the images of records that were set aside, from the list and the content that is
// intact. Other images are left to the archives and to the registries. It returns the names of the
// rebuilt images.
func (l Loader) rebuild(ctx context.Context) ([]string, error) {
	mark := filepath.Join(l.Paths.Marks, layout.RebuildMark)
	if _, err := os.Stat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("look for mark of unfinished rebuild: %w", err)
	}
	records, err := readImageList(l.Paths)
	if err != nil {
		// The archives and the registries remain.
		l.Log.Warn("list of images cannot be read: pulled images are pulled again", zap.Error(err))
	}
	var back []string
	for _, rec := range records {
		if err := l.rebuildImage(ctx, rec); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			l.Log.Warn("image could not be rebuilt from its content", zap.String("image", rec.Name), zap.Error(err))
			continue
		}
		back = append(back, rec.Name)
	}
	l.Log.Info("rebuilt images from their content", zap.Int("records", len(back)), zap.Int("of", len(records)))
	if err := os.Remove(mark); err != nil {
		return nil, fmt.Errorf("remove mark of unfinished rebuild: %w", err)
	}
	return back, nil
}

func readImageList(p layout.Paths) ([]imageRecord, error) {
	data, err := os.ReadFile(filepath.Join(p.Marks, imageList))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of images: %w", err)
	}
	var records []imageRecord
	if err := json.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("parse list of images: %w", err)
	}
	return records, nil
}

func (l Loader) rebuildImage(ctx context.Context, rec imageRecord) (err error) {
	manager := l.Client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(importLeaseTime),
		leases.WithLabel(labelImportLease, ""))
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	defer func() { err = errors.Join(err, manager.Delete(context.WithoutCancel(ctx), lease)) }()
	ctx = leases.WithLease(ctx, lease.ID)

	cs := l.Client.ContentStore()
	handler := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if err := l.recordBlob(ctx, cs, d); err != nil {
			return nil, err
		}
		return childrenFor(ctx, cs, d, thisMachine())
	})
	if err := images.Walk(ctx, images.SetChildrenLabels(cs, handler), rec.Target); err != nil {
		return err
	}
	img := images.Image{Name: rec.Name, Target: rec.Target, Labels: rec.Labels}
	if err := containerd.NewImage(l.Client, img).Unpack(ctx, l.Snapshotter,
		containerd.WithUnpackApplyOpts(diff.WithSyncFs(true))); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if _, err := l.Client.ImageService().Create(ctx, img); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// recordBlob makes containerd record a blob whose file exists. A damaged one is removed, so that it
// will be fetched again.
func (l Loader) recordBlob(ctx context.Context, cs content.Store, d v1.Descriptor) error {
	file := filepath.Join(l.Paths.Root, layout.Content, blobName(d.Digest))
	damage, err := findBlobDamage(file, d, true)
	if err != nil {
		return err
	}
	if damage != nil {
		return errors.Join(damage, dropBlob(ctx, cs, file, d))
	}
	// The writer finds the file and has nothing to write.
	w, err := cs.Writer(ctx, content.WithRef("rebuild-"+d.Digest.String()), content.WithDescriptor(d))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record content %s: %w", d.Digest, err)
	}
	err = w.Commit(ctx, d.Size, d.Digest)
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("record content %s: %w", d.Digest, err)
	}
	return nil
}
