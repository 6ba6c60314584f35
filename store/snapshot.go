package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"
)

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Path     string
	Revision int64
	// Taken is when, to the second.
	Taken time.Time
	// Bytes is the size of the snapshot's file.
	Bytes int64
}

const (
	snapshotPrefix = "mote-"
	snapshotSuffix = ".db.zst"
	snapshotTime   = "20060102T150405Z"
)

// Snapshot writes a consistent copy of the store file at path to dest, also while another process runs the store: then
// that one is asked to copy. dest is a file that is not there yet, or a folder, in which the snapshot gets a name of its
// own. The copy is checked before it gets its name.
func Snapshot(ctx context.Context, path, dest string) (SnapshotInfo, error) {
	return snapshotBy(ctx, path, dest, func(ctx context.Context, raw string) error {
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

// snapshotBy has the store at path copied by copyTo, and checks, packs and names the copy.
func snapshotBy(ctx context.Context, path, dest string, copyTo func(ctx context.Context, raw string) error) (SnapshotInfo, error) {
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
		name = fmt.Sprintf("%s%d-%s%s", snapshotPrefix, info.Revision, info.Taken.Format(snapshotTime), snapshotSuffix)
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

// copyStore writes the store as it is at one moment to the new file dest. It is one read transaction, which blocks no
// writer. When it fails or ctx ends, dest is removed.
func copyStore(ctx context.Context, path, dest string) (err error) {
	c, err := openConn(path, "query_only = OFF", "cache_size = -2048", "wal_autocheckpoint = 0")
	if err != nil {
		return fmt.Errorf("open store for snapshot: %w", fault(err))
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := checkStore(ctx, c, false); err != nil {
		return err
	}
	// SQLite takes an empty file as new. Ours, so that nobody else can read it and that it is ours to remove.
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

// copyTo copies the store for as long as it is open: Close ends the copy and waits for that.
func (s *Store) copyTo(ctx context.Context, raw string) error {
	ctx, end, err := s.tasks.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := copyStore(ctx, s.opts.Path, raw); err != nil {
		return errors.Join(err, closing(ctx))
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

// pack compresses a file. The compressed form carries a checksum of the content.
func pack(ctx context.Context, src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open copy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	defer out.Close()
	z, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return fmt.Errorf("start compression: %w", err)
	}
	if _, err := io.Copy(z, &source{ctx: ctx, r: in}); err != nil {
		return fmt.Errorf("compress snapshot: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("sync snapshot: %w", err)
	}
	return out.Close()
}

// unpack writes the database in a snapshot to dest. It knows the compressed form, a plain database, and what
// `etcdctl snapshot save` wrote: a database with its SHA-256 behind it.
func unpack(ctx context.Context, src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open snapshot: %w", err)
	}
	defer in.Close()
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s is shorter than a snapshot: %w", src, ErrDamaged)
	} else if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind snapshot: %w", err)
	}
	out, err := os.OpenFile(dest, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer out.Close()
	switch {
	case head == [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		if err := decompress(ctx, out, in); err != nil {
			return fmt.Errorf("decompress snapshot: %w", err)
		}
	case string(head[:]) == fileMagic[:4]:
		if err := copyPlain(ctx, in, out); err != nil {
			return err
		}
	default:
		return ErrForeign
	}
	if err := out.Sync(); err != nil {
		return fmt.Errorf("sync file: %w", err)
	}
	return out.Close()
}

// source reads from r until ctx ends, and remembers the error that ended it.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// sink writes to w and remembers the error of that.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.err = err
	return n, err
}

// decompress fails with ErrDamaged only when both sides worked, so that what is in src is at fault.
func decompress(ctx context.Context, dest io.Writer, src io.Reader) error {
	in, out := &source{ctx: ctx, r: src}, &sink{w: dest}
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.Copy(out, z)
	switch {
	case err == nil:
		return nil
	case in.err != nil:
		return in.err
	case out.err != nil:
		return out.err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", ErrForeign, err) // compressed in a way that pack does not
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

func copyPlain(ctx context.Context, in, out *os.File) error {
	h := sha256.New()
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at snapshot: %w", err)
	}
	size, trailer := st.Size(), st.Size()%512 == sha256.Size
	if trailer {
		size -= sha256.Size
	}
	if _, err := io.CopyN(io.MultiWriter(out, h), &source{ctx: ctx, r: in}, size); err != nil {
		return fmt.Errorf("copy snapshot: %w", err)
	}
	if !trailer {
		return nil
	}
	want, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read checksum of snapshot: %w", err)
	}
	if !bytes.Equal(want, h.Sum(nil)) {
		return fmt.Errorf("checksum of snapshot does not match: %w", ErrDamaged)
	}
	return nil
}

// CheckFile checks every page and every row of a snapshot, or of a store file that no process has open.
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

// restoredAhead is how far a restored store starts past its snapshot, so that no revision given out since the snapshot
// gets a second meaning. It is etcd's recommendation.
const restoredAhead = 1_000_000_000

// Restored tells what Restore did.
type Restored struct {
	// Revision is where the store goes on.
	Revision int64
	// Kept is the folder with the files that were there before, empty if there were none.
	Kept string
}

// Restore puts the content of a snapshot in place of the store file at path. The snapshot is checked first; a damaged
// or foreign one changes nothing. The files that were there are moved to a folder beside. The store must not be open.
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

// skipAhead makes a store go on at rev and refuse watches from before: their history is not this one.
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

// setAside deltas a store's files to a new folder beside theirs.
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
		mid, ok := strings.CutPrefix(e.Name(), snapshotPrefix)
		if mid, ok2 := strings.CutSuffix(mid, snapshotSuffix); ok && ok2 {
			revText, taken, _ := strings.Cut(mid, "-")
			rev, rerr := strconv.ParseInt(revText, 10, 64)
			at, terr := time.Parse(snapshotTime, taken)
			if rerr != nil || terr != nil {
				continue
			}
			st, err := e.Info()
			if errors.Is(err, os.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("list snapshots: %w", err)
			}
			all = append(all, SnapshotInfo{Path: filepath.Join(dir, e.Name()), Revision: rev, Taken: at, Bytes: st.Size()})
		}
	}
	slices.SortFunc(all, func(a, b SnapshotInfo) int {
		if c := b.Taken.Compare(a.Taken); c != 0 {
			return c
		}
		return cmp64(b.Revision, a.Revision)
	})
	return all, nil
}

// autoSnapshots takes snapshots on schedule and removes old ones. Nothing is taken while nothing changes.
func (s *Store) autoSnapshots(ctx context.Context) error {
	if err := os.MkdirAll(s.opts.SnapshotDir, 0o700); err != nil {
		s.log.Error("folder for snapshots cannot be made; the next snapshot tries again", zap.Error(err))
	}
	wait := s.opts.SnapshotEvery
	last := int64(0)
	if all, err := ListSnapshots(s.opts.SnapshotDir); err != nil {
		s.log.Error("snapshots cannot be listed, so the next one is taken after a whole period", zap.Error(err))
	} else if len(all) > 0 {
		last = all[0].Revision
		wait = min(wait, max(time.Until(all[0].Taken.Add(s.opts.SnapshotEvery)), time.Second))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		timer.Reset(s.opts.SnapshotEvery)
		if s.rev.Load() == last {
			continue
		}
		info, err := s.autoSnapshot(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.log.Error("automatic snapshot failed", zap.Error(err), zap.Duration("retry in", s.opts.SnapshotEvery))
			continue
		}
		last = info.Revision
		s.log.Info("snapshot taken", zap.String("path", info.Path), zap.Int64("revision", info.Revision), zap.Int64("bytes", info.Bytes))
		if err := s.dropSnapshots(); err != nil {
			s.log.Warn("old snapshots could not be removed", zap.Error(err))
		}
	}
}

func (s *Store) autoSnapshot(ctx context.Context) (SnapshotInfo, error) {
	if err := os.MkdirAll(s.opts.SnapshotDir, 0o700); err != nil {
		return SnapshotInfo{}, fmt.Errorf("make folder for snapshots: %w", err)
	}
	return snapshotBy(ctx, s.opts.Path, s.opts.SnapshotDir, s.copyTo)
}

func (s *Store) dropSnapshots() error {
	all, err := ListSnapshots(s.opts.SnapshotDir)
	if err != nil || len(all) <= s.opts.SnapshotKeep {
		return err
	}
	var errs []error
	for _, old := range all[s.opts.SnapshotKeep:] {
		errs = append(errs, os.Remove(old.Path))
	}
	return errors.Join(errs...)
}

// streamSnapshot sends a snapshot as etcd does: the database in pieces and its SHA-256 last.
func (s *Store) streamSnapshot(ctx context.Context, send func(*pb.SnapshotResponse) error) error {
	tmp, err := os.MkdirTemp(filepath.Dir(s.opts.Path), ".snapshot-")
	if err != nil {
		return fmt.Errorf("make folder for snapshot: %w", err)
	}
	defer os.RemoveAll(tmp)
	raw := filepath.Join(tmp, "raw.db")
	if err := s.copyTo(ctx, raw); err != nil {
		return err
	}
	rev, err := verify(ctx, raw)
	if err != nil {
		return fmt.Errorf("check snapshot: %w", err)
	}
	f, err := os.Open(raw)
	if err != nil {
		return fmt.Errorf("open snapshot: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at snapshot: %w", err)
	}
	h := sha256.New()
	for left := st.Size(); left > 0; {
		// A new buffer each time: sending may still use the last one.
		buf := make([]byte, min(left, 32<<10))
		if _, err := io.ReadFull(f, buf); err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		left -= int64(len(buf))
		h.Write(buf)
		if err := send(&pb.SnapshotResponse{Header: s.header(rev), RemainingBytes: uint64(left), Blob: buf, Version: version.Version}); err != nil {
			return err
		}
	}
	return send(&pb.SnapshotResponse{Header: s.header(rev), Blob: h.Sum(nil), Version: version.Version})
}
