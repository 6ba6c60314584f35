package image

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/platforms"
)

// Info is one image of a running mote.
type Info struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Origin is "bundled", "imported", or "pulled".
	Origin string `json:"origin"`
	// Pinned images are not removed for want of space.
	Pinned  bool      `json:"pinned"`
	Created time.Time `json:"created"`
}

// List returns the images of a running mote by name. The records under which CRI also knows each
// image, by digest and by id, are left out.
func List(ctx context.Context, agentDir string) ([]Info, error) {
	c, err := connect(ctx, agentDir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	list, err := listNamed(c.ctx, c.Client)
	return list, c.explain(err)
}

func listNamed(ctx context.Context, client *containerd.Client) ([]Info, error) {
	records, err := client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []Info
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
		list = append(list, Info{
			Name:    r.Name,
			Digest:  r.Target.Digest.String(),
			Size:    size,
			Origin:  origin,
			Pinned:  r.Labels[labelPinned] == labelPinnedValue,
			Created: r.CreatedAt,
		})
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
