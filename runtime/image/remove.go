package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/mote-dev/mote/runtime/layout"
)

// ErrNoImage is wrapped when an image to remove does not exist.
var ErrNoImage = errors.New("no such image")

// Remove removes images by name from a running mote. A kept archive is removed with the last of its
// images. Running containers keep their files.
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
	p := layout.For(agentDir)
	archives, err := listArchives(p.Imported)
	if err != nil {
		return err
	}
	for _, file := range archives {
		record := filepath.Join(p.Marks, loadedDir, recordName(file))
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
