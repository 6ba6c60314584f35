package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"
)

// snapshots takes snapshots of the open store: on schedule, for clients and for other processes.
type snapshots struct {
	member
	log   *zap.Logger
	revs  *revisions
	tasks *tasks
	path  string // of the store file
	dir   string // for automatic ones
	every time.Duration
	keep  int
}

// copyTo copies the store for as long as it is open: Close ends the copy and waits for that.
func (s *snapshots) copyTo(ctx context.Context, raw string) error {
	ctx, end, err := s.tasks.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := copyStore(ctx, s.path, raw); err != nil {
		return errors.Join(err, closing(ctx))
	}
	return nil
}

// run takes snapshots on schedule and removes old ones, until ctx ends. It takes none while nothing
// changes.
func (s *snapshots) run(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		s.log.Error("folder for snapshots cannot be made; the next snapshot tries again", zap.Error(err))
	}
	if err := s.removeHalf(time.Now()); err != nil {
		s.log.Warn("half-written snapshots could not be removed", zap.Error(err))
	}
	wait := s.every
	last := int64(0)
	if all, err := ListSnapshots(s.dir); err != nil {
		s.log.Error("snapshots cannot be listed, so the next one is taken after a whole period", zap.Error(err))
	} else if len(all) > 0 {
		last = all[0].Revision
		wait = min(wait, max(time.Until(all[0].Taken.Add(s.every)), time.Second))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		timer.Reset(s.every)
		if s.revs.published.Load() == last {
			continue
		}
		info, err := s.take(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.log.Error("automatic snapshot failed", zap.Error(err), zap.Duration("retry in", s.every))
			continue
		}
		last = info.Revision
		s.log.Info("snapshot taken", zap.String("path", info.Path), zap.Int64("revision", info.Revision),
			zap.Int64("bytes", info.Bytes))
		if err := s.drop(); err != nil {
			s.log.Warn("old snapshots could not be removed", zap.Error(err))
		}
	}
}

// abandoned is how long nothing happens in the folder of a copy that is being made by a process
// that was killed. Another one may be saving a snapshot just now.
const abandoned = time.Hour

// removeHalf removes copies that were never finished, each as large as the store.
func (s *snapshots) removeHalf(now time.Time) error {
	var errs []error
	for _, dir := range []string{s.dir, filepath.Dir(s.path)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries {
			// A restore needs the lock that this store has, so none goes on.
			restore := strings.HasPrefix(e.Name(), ".restore-")
			if !e.IsDir() || !restore && !strings.HasPrefix(e.Name(), ".snapshot-") &&
				!strings.HasPrefix(e.Name(), ".check-") {
				continue
			}
			half := filepath.Join(dir, e.Name())
			if newest, err := newestIn(half); err != nil || !restore && now.Sub(newest) < abandoned {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, os.RemoveAll(half))
		}
	}
	return errors.Join(errs...)
}

// newestIn returns when a folder or a file in it was last written to.
func newestIn(dir string) (newest time.Time, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err == nil && st.ModTime().After(newest) {
			newest = st.ModTime()
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return time.Now(), nil // it is being finished
	}
	return newest, err
}

func (s *snapshots) take(ctx context.Context) (SnapshotInfo, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return SnapshotInfo{}, fmt.Errorf("make folder for snapshots: %w", err)
	}
	return snapshotBy(ctx, s.path, s.dir, automaticPrefix, s.copyTo)
}

// drop removes all but the newest automatic snapshots. What somebody saved in the folder stays, and
// does not count.
func (s *snapshots) drop() error {
	all, err := ListSnapshots(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	kept := 0
	for _, old := range all {
		switch {
		case !old.automatic:
		case kept < s.keep:
			kept++
		default:
			errs = append(errs, os.Remove(old.Path))
		}
	}
	return errors.Join(errs...)
}

// stream sends a snapshot as etcd does: the database in pieces and its SHA-256 last.
func (s *snapshots) stream(ctx context.Context, send func(*pb.SnapshotResponse) error) error {
	tmp, err := os.MkdirTemp(filepath.Dir(s.path), ".snapshot-")
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
		if err := send(&pb.SnapshotResponse{
			Header:         s.header(rev),
			RemainingBytes: uint64(left),
			Blob:           buf,
			Version:        version.Version,
		}); err != nil {
			return err
		}
	}
	return send(&pb.SnapshotResponse{Header: s.header(rev), Blob: h.Sum(nil), Version: version.Version})
}
