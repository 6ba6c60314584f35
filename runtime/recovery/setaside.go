package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/runtime/layout"
)

// records are the files set aside when any of them is damaged: containerd's records and those of
// CRI and the snapshotters, which refer to one another. Content stays: it is named by its hash, so
// importing or pulling an image again finds what is intact and writes only the rest.
var records = []string{layout.MetadataDB, layout.CRI, layout.Snapshotter + "*"}

// SetAside replaces damaged records by none: it moves them to a folder named for the time, ends the
// pods, and leaves a mark to rebuild the images. Unpacked snapshots, which can be large and can be
// unpacked again, are deleted. If the records cannot be moved, pods keep running. Call it only for
// a reason that is [Damaged].
func SetAside(ctx context.Context, p layout.Paths, reason error, log *zap.Logger) error {
	aside := filepath.Join(p.Root, damagedPrefix+time.Now().UTC().Format("20060102T150405.000"))
	// The mark comes first: a needless rebuild does no harm, a missing one costs images.
	mark := filepath.Join(p.Marks, layout.RebuildMark)
	if err := atomicfile.Write(mark, nil, 0o600); err != nil {
		return fmt.Errorf("set damaged records aside (%w): %w", reason, err)
	}
	if err := moveRecords(p.Root, aside); err != nil {
		return errors.Join(fmt.Errorf("set damaged records aside (%w): %w", reason, err), os.Remove(mark))
	}
	log.Warn("container state is damaged: set aside, to be rebuilt from content and image archives; pods are restarted",
		zap.NamedError("reason", reason), zap.String("folder", aside))
	// A start that finds containers without records ends them too, should this one not get here.
	if err := killAll(ctx, p); err != nil {
		return fmt.Errorf("end pods whose records are damaged: %w", err)
	}
	if err := p.Mkdirs(); err != nil {
		return err
	}
	return pruneDamaged(p)
}

// moveRecords moves all records from root to aside, or none.
func moveRecords(root, aside string) (err error) {
	type move struct{ from, to string }
	var done []move
	defer func() {
		if err == nil {
			return
		}
		for _, m := range slices.Backward(done) {
			err = errors.Join(err, os.Rename(m.to, m.from))
		}
	}()
	for _, pattern := range records {
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return fmt.Errorf("list records: %w", err)
		}
		for _, from := range matches {
			rel, err := filepath.Rel(root, from)
			if err != nil {
				return err
			}
			m := move{from: from, to: filepath.Join(aside, rel)}
			if err := os.MkdirAll(filepath.Dir(m.to), 0o700); err != nil {
				return err
			}
			if err := os.Rename(m.from, m.to); err != nil {
				return err
			}
			done = append(done, m)
		}
	}
	return atomicfile.SyncDir(root)
}

// pruneDamaged deletes the snapshots in the folders set aside, and all but the newest folders.
func pruneDamaged(p layout.Paths) error {
	folders, err := filepath.Glob(filepath.Join(p.Root, damagedPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list damaged records: %w", err)
	}
	slices.Sort(folders)
	old := max(len(folders)-keptDamaged, 0)
	for i, f := range folders {
		remove := []string{f}
		if i >= old {
			if remove, err = filepath.Glob(filepath.Join(f, layout.Snapshotter+"*", snapshotsFolder)); err != nil {
				return fmt.Errorf("list damaged snapshots: %w", err)
			}
		}
		for _, dir := range remove {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove old damaged records: %w", err)
			}
		}
	}
	return nil
}
