package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/layout"
)

// ErrNoRoom is wrapped when an import would fill the disk. Nothing of it is left.
var ErrNoRoom = errors.New("not enough disk space")

const (
	// reservePart is the part of a disk that imports leave free, at most maxReserve of it: with
	// less the kubelet evicts pods (its evictBelow), and a server's store has no room to write.
	reservePart = 10
	maxReserve  = 2 << 30
	// roomEvery is how often an import looks whether the disk still has that much.
	roomEvery = 200 * time.Millisecond
	// fillStep is how much is copied between two looks.
	fillStep = 16 << 20
)

// disk is where an import writes.
type disk struct {
	path string
	// statfs is replaced in tests.
	statfs func(path string, s *unix.Statfs_t) error
}

// diskOf returns the disk of containerd's content and snapshots.
func diskOf(p layout.Paths) disk { return disk{path: p.Root, statfs: unix.Statfs} }

// space returns what is free, and what of it an import leaves.
func (d disk) space() (free, reserve int64, err error) {
	var s unix.Statfs_t
	if err := d.statfs(d.path, &s); err != nil {
		return 0, 0, fmt.Errorf("find out how much disk space %s has: %w", d.path, err)
	}
	return int64(s.Bavail) * s.Bsize, min(int64(s.Blocks)*s.Bsize/reservePart, maxReserve), nil
}

// room returns what an import may take.
func (d disk) room() (int64, error) {
	free, reserve, err := d.space()
	return max(0, free-reserve), err
}

// fill copies a file of an unknown size as long as there is room for it.
func (d disk) fill(to io.Writer, from io.Reader) error {
	for {
		room, err := d.room()
		if err != nil {
			return err
		}
		if room == 0 {
			return ErrNoRoom
		}
		n, err := io.CopyN(to, from, min(room, fillStep))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
}

// explain adds to [ErrNoRoom] how much there is and how much is needed, of which zero is unknown.
func (d disk) explain(err error, needed int64) error {
	if !errors.Is(err, ErrNoRoom) {
		return err
	}
	free, reserve, spaceErr := d.space()
	if spaceErr != nil {
		return errors.Join(err, spaceErr)
	}
	need := "more than that"
	if needed > 0 {
		need = "at least " + bytesText(needed)
	}
	return fmt.Errorf("%w: %s has %s free and keeps %s for pods, the archive takes %s unpacked: free space, for "+
		"instance with `mote image rm`", err, d.path, bytesText(free), bytesText(reserve), need)
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// guard runs f with a context that ends with [ErrNoRoom] when the disk has less than the reserve:
// others write too while an image is unpacked.
func (d disk) guard(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(roomEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				// A disk that cannot be looked at is no reason to end: writing to it will tell.
				if room, err := d.room(); err == nil && room == 0 {
					cancel(ErrNoRoom)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	err := f(ctx)
	cause := context.Cause(ctx)
	cancel(nil)
	<-watched
	if err != nil && errors.Is(cause, ErrNoRoom) {
		return fmt.Errorf("%w (%w)", ErrNoRoom, err)
	}
	return err
}
