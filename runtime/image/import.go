package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/mote-dev/mote/runtime/layout"
)

// Labels on the records of imported images. The first two are CRI's: the kubelet sees only images
// with the first, and never garbage-collects one with the second.
const (
	labelManaged      = "io.cri-containerd.image"
	labelManagedValue = "managed"
	labelPinned       = "io.cri-containerd.pinned"
	labelPinnedValue  = "pinned"
	// labelOrigin is "bundled" or "imported".
	labelOrigin = "mote.dev/origin"
)

const (
	// labelImportLease marks the leases of imports. One found at start belongs to an interrupted
	// import.
	labelImportLease = "mote.dev/import"
	importLeaseTime  = 24 * time.Hour
	// undoTimeout bounds the clean-up of a failed import.
	undoTimeout = 10 * time.Second
)

const (
	originBundled  = "bundled"
	originImported = "imported"
)

// importChecked imports the images that checkArchive has planned: content, unpacked snapshots, and
// last the image records. It holds a lease, so that containerd drops all of it if a step fails.
func importChecked(ctx context.Context, client *containerd.Client, snapshotter string, r io.Reader, plan archivePlan,
	origin string) (names []string, err error) {
	ctx = namespaces.WithNamespace(ctx, layout.Namespace)
	tr, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer tr.Close()
	manager := client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(importLeaseTime),
		leases.WithLabel(labelImportLease, ""))
	if err != nil {
		return nil, fmt.Errorf("create lease for import: %w", err)
	}
	defer func() {
		var how []leases.DeleteOpt
		if err != nil {
			// When the caller gets the error, the content is gone.
			how = append(how, leases.SynchronousDelete)
		}
		// The lease must go even if the caller has given up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if e := manager.Delete(ctx, lease, how...); e != nil {
			err = errors.Join(err, fmt.Errorf("delete lease of import: %w", e))
		}
	}()
	ctx = leases.WithLease(ctx, lease.ID)

	cs := client.ContentStore()
	index, err := archive.ImportIndex(ctx, cs, newPlainTar(tr, plan.aliases))
	if err != nil {
		return nil, fmt.Errorf("import image archive: %w", err)
	}
	var found []images.Image
	handler := images.HandlerFunc(func(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
		if d.Digest != index.Digest {
			return childrenFor(ctx, cs, d, thisMachine())
		}
		planned, err := plannedImages(ctx, cs, d, plan)
		if err != nil {
			return nil, err
		}
		found = planned
		var use []v1.Descriptor
		for _, img := range found {
			use = append(use, img.Target)
		}
		return use, nil
	})
	if err := images.WalkNotEmpty(ctx, images.SetChildrenLabels(cs, handler), index); err != nil {
		return nil, fmt.Errorf("walk imported image: %w", err)
	}
	for _, img := range found {
		// SyncFs: the metadata must not list a snapshot as complete before it is on disk.
		if err := containerd.NewImage(client, img).Unpack(ctx, snapshotter,
			containerd.WithUnpackApplyOpts(diff.WithSyncFs(true))); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", img.Name, err)
		}
	}
	for _, img := range found {
		if err := recordImage(ctx, client, img, origin); err != nil {
			return nil, err
		}
		names = append(names, img.Name)
	}
	return names, nil
}

// childrenFor returns what a descriptor refers to, of an index only the image a machine uses: the
// content of the others need not be there.
func childrenFor(ctx context.Context, cs content.Provider, d v1.Descriptor, machine platforms.MatchComparer) (
	[]v1.Descriptor, error) {
	children, err := images.Children(ctx, cs, d)
	if err == nil && images.IsIndexType(d.MediaType) {
		children = best(machine, children)
	}
	return children, err
}

// plannedImages returns the planned images of an archive's index, which containerd has made itself
// if the archive is in Docker layout.
func plannedImages(ctx context.Context, cs content.Provider, index v1.Descriptor, plan archivePlan) (
	[]images.Image, error) {
	entries, err := readIndex(ctx, cs, index)
	if err != nil {
		return nil, err
	}
	found := map[string]images.Image{}
	for _, m := range entries {
		name := imageNameOf(m.Annotations)
		planned, ok := plan.images[name]
		if !ok {
			continue
		}
		if planned != m.Digest {
			if !images.IsManifestType(m.MediaType) {
				continue
			}
			// Not an entry of the archive, or another platform's, whose content may be missing.
			manifest, err := readManifest(ctx, cs, m)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			if err != nil || manifest.Config.Digest != planned {
				continue
			}
		}
		found[name] = images.Image{Name: name, Target: m}
	}
	if len(found) < len(plan.images) {
		return nil, fmt.Errorf("containerd has %d of the archive's %d images", len(found), len(plan.images))
	}
	return slices.Collect(maps.Values(found)), nil
}

// recordImage writes the records CRI expects of an image: by name and by digest, as pods may use
// either, and by the id of its configuration.
func recordImage(ctx context.Context, client *containerd.Client, img images.Image, origin string) error {
	config, err := containerd.NewImage(client, img).Config(ctx)
	if err != nil {
		return fmt.Errorf("read configuration of image %s: %w", img.Name, err)
	}
	refs := []string{config.Digest.String(), img.Name}
	if named, err := reference.ParseDockerRef(img.Name); err == nil {
		refs = append(refs, reference.TrimNamed(named).String()+"@"+img.Target.Digest.String())
	}
	store := client.ImageService()
	for _, ref := range refs {
		record := images.Image{Name: ref, Target: img.Target, Labels: map[string]string{
			labelManaged: labelManagedValue,
			labelPinned:  labelPinnedValue,
			labelOrigin:  origin,
		}}
		_, err := store.Create(ctx, record)
		if errdefs.IsAlreadyExists(err) {
			_, err = store.Update(ctx, record, "target", "labels."+labelManaged, "labels."+labelPinned,
				"labels."+labelOrigin)
		}
		if err != nil {
			return fmt.Errorf("record image %s: %w", ref, err)
		}
	}
	return nil
}

// dropImportLeases removes what interrupted imports left behind.
func dropImportLeases(ctx context.Context, client *containerd.Client) error {
	manager := client.LeasesService()
	found, err := manager.List(ctx, fmt.Sprintf("labels.%q", labelImportLease))
	if err != nil {
		return fmt.Errorf("list leases of imports: %w", err)
	}
	for _, l := range found {
		if err := manager.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease of an interrupted import: %w", err)
		}
	}
	return nil
}

func readIndex(ctx context.Context, cs content.Provider, d v1.Descriptor) ([]v1.Descriptor, error) {
	data, err := content.ReadBlob(ctx, cs, d)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("parse image index: %w", err)
	}
	return index.Manifests, nil
}

func readManifest(ctx context.Context, cs content.Provider, d v1.Descriptor) (v1.Manifest, error) {
	var manifest v1.Manifest
	data, err := content.ReadBlob(ctx, cs, d)
	if err != nil {
		return manifest, fmt.Errorf("read image manifest: %w", err)
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return manifest, fmt.Errorf("parse image manifest: %w", err)
	}
	return manifest, nil
}
