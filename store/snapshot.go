package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Path     string `json:"path"`
	Revision int64  `json:"revision"`
	// Taken is when, to the second.
	Taken time.Time `json:"taken"`
	// Bytes is the size of the snapshot's file.
	Bytes int64 `json:"bytes"`
	// automatic means that a store took it on schedule, into a file of its own.
	automatic bool
}

// Names of snapshots. A store removes its old automatic ones, so their prefix is theirs alone:
// whoever asked for a snapshot keeps it. Up to the first release both had that of a saved one.
const (
	savedPrefix     = "mote-"
	automaticPrefix = "mote-auto-"
	snapshotSuffix  = ".db.zst"
	snapshotTime    = "20060102T150405Z"
)

func snapshotName(prefix string, rev int64, taken time.Time) string {
	return fmt.Sprintf("%s%d-%s%s", prefix, rev, taken.UTC().Format(snapshotTime), snapshotSuffix)
}

// parseSnapshotName takes a name apart that snapshotName made. No other spelling of the same
// revision and time is one.
func parseSnapshotName(name string) (prefix string, rev int64, taken time.Time, ok bool) {
	prefix = savedPrefix
	if strings.HasPrefix(name, automaticPrefix) {
		prefix = automaticPrefix
	}
	revText, takenText, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
	rev, err := strconv.ParseInt(revText, 10, 64)
	if err != nil {
		return "", 0, time.Time{}, false
	}
	taken, err = time.Parse(snapshotTime, strings.TrimSuffix(takenText, snapshotSuffix))
	return prefix, rev, taken, err == nil && name == snapshotName(prefix, rev, taken)
}

// Snapshot writes a consistent copy of the store file at path to dest, also while another process
// runs the store: then that one is asked to copy. dest is a file that is not there yet, or a
// folder, in which the snapshot gets a name of its own. The copy is checked before it gets its
// name.
func Snapshot(ctx context.Context, path, dest string) (SnapshotInfo, error) {
	return snapshotBy(ctx, path, dest, savedPrefix, func(ctx context.Context, raw string) error {
		lock, err := lockFile(lockPath(path))
		if errors.Is(err, ErrInUse) {
			return requestCopy(ctx, path, raw)
		}
		if err != nil {
			return err
		}
		return errors.Join(copyStore(ctx, path, raw), lock.Close())
	})
}

// snapshotBy has the store at path copied by copyTo, and checks, packs and names the copy. In a
// folder its name begins with prefix.
func snapshotBy(ctx context.Context, path, dest, prefix string,
	copyTo func(ctx context.Context, raw string) error) (SnapshotInfo, error) {
	info := SnapshotInfo{Taken: time.Now().UTC().Truncate(time.Second)}
	dir, name := filepath.Dir(dest), filepath.Base(dest)
	switch st, err := os.Stat(dest); {
	case err == nil && st.IsDir():
		dir, name = dest, ""
	case err == nil:
		return info, fmt.Errorf("write snapshot: %s: %w", dest, os.ErrExist)
	case !errors.Is(err, os.ErrNotExist):
		return info, fmt.Errorf("look at snapshot: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return info, fmt.Errorf("look at store file: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".snapshot-")
	if err != nil {
		return info, fmt.Errorf("make folder for snapshot: %w", err)
	}
	defer os.RemoveAll(tmp)
	raw := filepath.Join(tmp, "raw.db")
	if err := copyTo(ctx, raw); err != nil {
		return info, err
	}
	if info.Revision, err = verify(ctx, raw); err != nil {
		return info, fmt.Errorf("check snapshot: %w", err)
	}
	packed := filepath.Join(tmp, "packed")
	if err := pack(ctx, raw, packed); err != nil {
		return info, err
	}
	if name == "" {
		name = snapshotName(prefix, info.Revision, info.Taken)
	}
	info.Path = filepath.Join(dir, name)
	if err := os.Rename(packed, info.Path); err != nil {
		return info, fmt.Errorf("name snapshot: %w", err)
	}
	st, err := os.Stat(info.Path)
	if err != nil {
		return info, fmt.Errorf("look at snapshot: %w", err)
	}
	info.Bytes = st.Size()
	return info, syncDir(dir)
}

// copyStore writes the store as it is at one moment to the new file dest. It is one read
// transaction, which blocks no writer. When it fails or ctx ends, dest is removed.
func copyStore(ctx context.Context, path, dest string) (err error) {
	c, err := openConn(path, "query_only = OFF", "cache_size = -2048", "wal_autocheckpoint = 0")
	if err != nil {
		return fmt.Errorf("open store for snapshot: %w", fault(err))
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := checkStore(ctx, c, false); err != nil {
		return err
	}
	// SQLite takes an empty file as new. Ours, so that nobody else can read it and that it is ours
	// to remove.
	f, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create copy of store: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create copy of store: %w", err)
	}
	none := func([]driver.Value) (bool, error) { return true, nil }
	if err := c.queryContext(ctx, "VACUUM INTO ?1", none, dest); err != nil {
		return errors.Join(fmt.Errorf("copy store to %s: %w", dest, fault(err)), os.Remove(dest))
	}
	return nil
}

// verify checks every page and row of a file that nobody writes to, and returns its revision.
func verify(ctx context.Context, path string) (int64, error) {
	empty, err := prepareFile(path)
	if err != nil {
		return 0, err
	}
	if empty {
		return 0, fmt.Errorf("%s is empty: %w", path, ErrDamaged)
	}
	c, err := openConn(path)
	if err != nil {
		return 0, fault(err)
	}
	defer c.close()
	if err := checkStore(ctx, c, true); err != nil {
		return 0, err
	}
	if err := checkRows(ctx, c); err != nil {
		return 0, err
	}
	meta, err := readMeta(c)
	if err != nil {
		return 0, fault(err)
	}
	newest, err := c.queryInt("SELECT max(id) FROM log")
	return max(meta[metaFloor], revOf(newest)), fault(err)
}

// CheckFile checks every page and every row of a snapshot, or of a store file that no process has
// open.
func CheckFile(ctx context.Context, path string) (SnapshotInfo, error) {
	info := SnapshotInfo{Path: path}
	st, err := os.Stat(path)
	if err != nil {
		return info, fmt.Errorf("look at file: %w", err)
	}
	info.Bytes, info.Taken = st.Size(), st.ModTime().UTC().Truncate(time.Second)
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".check-")
	if err != nil {
		return info, fmt.Errorf("make folder for check: %w", err)
	}
	defer os.RemoveAll(tmp)
	raw := filepath.Join(tmp, "raw.db")
	switch _, err := os.Stat(path + "-wal"); {
	case err == nil:
		// A store file whose log was not copied back: what counts is both together.
		if err := copyStore(ctx, path, raw); err != nil {
			return info, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return info, fmt.Errorf("look at log of store: %w", err)
	default:
		if err := unpack(ctx, path, raw); err != nil {
			return info, err
		}
	}
	info.Revision, err = verify(ctx, raw)
	return info, err
}

// ListSnapshots lists the snapshots in a folder that have names of their own, newest first.
func ListSnapshots(dir string) ([]SnapshotInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []SnapshotInfo
	for _, e := range entries {
		prefix, rev, taken, ok := parseSnapshotName(e.Name())
		if !ok {
			continue
		}
		st, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		all = append(all, SnapshotInfo{
			Path:      filepath.Join(dir, e.Name()),
			Revision:  rev,
			Taken:     taken,
			Bytes:     st.Size(),
			automatic: prefix == automaticPrefix && st.Mode().IsRegular(),
		})
	}
	slices.SortFunc(all, func(a, b SnapshotInfo) int {
		if c := b.Taken.Compare(a.Taken); c != 0 {
			return c
		}
		return cmp64(b.Revision, a.Revision)
	})
	return all, nil
}
