package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// restoredAhead is how far a restored store starts past its snapshot, so that no revision given out
// since the snapshot gets a second meaning. It is etcd's recommendation.
const restoredAhead = 1_000_000_000

// Restored is the outcome of Restore.
type Restored struct {
	// Revision is where the store goes on.
	Revision int64
	// Kept is the folder with the files that were there before, empty if there were none.
	Kept string
}

// Restore puts the content of a snapshot in place of the store file at path. The snapshot is
// checked first; a damaged or foreign one changes nothing. The files that were there are moved to a
// folder beside. The store must not be open.
func Restore(ctx context.Context, snapshot, path string) (Restored, error) {
	var res Restored
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return res, fmt.Errorf("make folder of store: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return res, err
	}
	defer lock.Close()
	tmp, err := os.MkdirTemp(dir, ".restore-")
	if err != nil {
		return res, fmt.Errorf("make folder for restore: %w", err)
	}
	defer os.RemoveAll(tmp)
	raw := filepath.Join(tmp, "raw.db")
	if err := unpack(ctx, snapshot, raw); err != nil {
		return res, err
	}
	rev, err := verify(ctx, raw)
	if err != nil {
		return res, fmt.Errorf("check snapshot: %w", err)
	}
	res.Revision = rev + restoredAhead
	if err := skipAhead(raw, res.Revision); err != nil {
		return res, err
	}
	if err := ctx.Err(); err != nil {
		return res, err
	}
	if res.Kept, err = setAside(path); err != nil {
		return res, err
	}
	if err := os.Rename(raw, path); err != nil {
		return res, fmt.Errorf("put store in place: %w", err)
	}
	return res, syncDir(dir)
}

// skipAhead makes a store go on at rev and refuse watches from before: their history is not this
// one.
func skipAhead(path string, rev int64) error {
	c, err := openConn(path, "journal_mode = DELETE", "synchronous = FULL")
	if err != nil {
		return fmt.Errorf("open restored store: %w", fault(err))
	}
	if err := errors.Join(c.exec("BEGIN IMMEDIATE"), setMeta(c, metaFloor, rev), setMeta(c, metaCompacted, rev),
		setMeta(c, metaUnsynced, allSynced), c.exec("COMMIT"), c.close()); err != nil {
		return fmt.Errorf("move restored store ahead: %w", fault(err))
	}
	return nil
}

// setAside moves a store's files to a new folder beside theirs.
func setAside(path string) (string, error) {
	var found []string
	for _, suffix := range []string{"", "-wal", "-shm"} {
		switch _, err := os.Stat(path + suffix); {
		case err == nil:
			found = append(found, path+suffix)
		case !errors.Is(err, os.ErrNotExist):
			return "", fmt.Errorf("look for the old store: %w", err)
		}
	}
	if len(found) == 0 {
		return "", nil
	}
	kept, err := os.MkdirTemp(filepath.Dir(filepath.Dir(path)), filepath.Base(filepath.Dir(path))+"-before-restore-")
	if err != nil {
		return "", fmt.Errorf("make folder for the old store: %w", err)
	}
	for _, f := range found {
		if err := os.Rename(f, filepath.Join(kept, filepath.Base(f))); err != nil {
			return kept, fmt.Errorf("move the old store aside: %w", err)
		}
	}
	return kept, syncDir(kept)
}
