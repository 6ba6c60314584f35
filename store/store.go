package store

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Store is an open store. Its methods are safe for concurrent use.
//
// Lock order: hub.mu before watchStream.mu; lessor.mu is taken alone.
type Store struct {
	member
	opts      Options
	log       *zap.Logger
	lock      *os.File
	metrics   *metrics
	pageBytes int64

	revs      revisions
	reads     *readers
	writes    *writer
	watches   *watches
	leases    *leases
	compactor *compactor
	snapshots *snapshots

	alarm    atomic.Bool // the last write found no room
	damage   damageLog
	hashKVMu sync.Mutex // one hash over the whole file at a time

	tasks     tasks
	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// Run does the background work until ctx ends: it expires leases, deletes what compaction made
// superfluous, copies the store for other processes and takes automatic snapshots. It returns nil
// when ctx ends or the store closes. When there is nothing to do it sleeps.
func (s *Store) Run(ctx context.Context) error {
	ctx, end, err := s.tasks.begin(ctx)
	if err != nil {
		return nil // closed before it ran
	}
	defer end()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.leases.expire(ctx) })
	g.Go(func() error { return s.compactor.run(ctx) })
	g.Go(func() error {
		s.snapshots.serveRequests(ctx)
		return nil
	})
	if s.opts.SnapshotEvery > 0 {
		g.Go(func() error { return s.snapshots.run(ctx) })
	}
	return g.Wait()
}

// Close ends Run, all watches and copies of the file, waits for reads and writes in progress,
// copies the write-ahead log into the file and closes it. A second call returns what the first did.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.watches.hub.close()
		s.tasks.close()
		var errs []error
		errs = append(errs, s.writes.close())
		for range s.opts.Readers {
			c := <-s.reads.conns
			errs = append(errs, c.close())
		}
		errs = append(errs, s.writes.finish(), s.lock.Close())
		s.closeErr = errors.Join(errs...)
		s.log.Info("store closed", zap.Int64("revision", s.Revision()), zap.Error(s.closeErr))
	})
	return s.closeErr
}

// Revision is the newest revision that was published.
func (s *Store) Revision() int64 { return s.revs.published.Load() }
