package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// compactTo makes revisions before rev unreadable. What that makes superfluous is swept away afterwards, in steps.
func (s *Store) compactTo(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	rev := int64(0)
	err := s.submit(&proposal{ctx: ctx, size: 32, done: make(chan struct{}), apply: func(tx *writeTx) error {
		switch {
		case r.Revision <= s.compact.Load():
			return ErrCompacted
		case r.Revision > tx.rev:
			return ErrFutureRevision
		}
		rev = tx.rev
		tx.wrote = true
		return setMeta(tx.w.c, metaCompacted, r.Revision)
	}, published: func() {
		// Not before: reads at the revision that counts until then would seem to ask for a compacted one.
		s.compact.Store(max(s.compact.Load(), r.Revision))
		s.sweep.wake()
	}})
	if err != nil {
		return nil, err
	}
	if r.Physical {
		if err := s.sweep.wait(ctx, r.Revision); err != nil {
			return nil, err
		}
	}
	return &pb.CompactionResponse{Header: s.header(max(rev, s.rev.Load()))}, nil
}

// compactor deletes what compaction made superfluous, a few rows a transaction, so that writers hardly wait. A row is
// superfluous when its successor, the row whose prev it is, is not newer than the compacted revision; a tombstone,
// when it is older itself. So going once over the rows from the last sweep to the compacted revision finds all.
type compactor struct {
	s     *Store
	woken chan struct{}

	mu    sync.Mutex
	swept int64 // revision up to which all is swept
	moved chan struct{}
}

func newCompactor(s *Store, swept int64) *compactor {
	return &compactor{s: s, woken: make(chan struct{}, 1), swept: swept, moved: make(chan struct{})}
}

func (sw *compactor) wake() {
	select {
	case sw.woken <- struct{}{}:
	default:
	}
}

// wait waits until everything up to rev is swept.
func (sw *compactor) wait(ctx context.Context, rev int64) error {
	for {
		sw.mu.Lock()
		done, moved := sw.swept >= rev, sw.moved
		sw.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-sw.s.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const (
	compactRows = 200
	vacuumPages = 64
)

func (sw *compactor) run(ctx context.Context) error {
	pauses := retry.Backoff{First: time.Second, Last: time.Minute}
	var failures retry.Failures
	for {
		err := sw.pass(ctx)
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil, errors.Is(err, ErrClosed):
			return nil
		case err == nil:
			pauses.Reset()
			if failures.Recovered() {
				sw.s.log.Info("compaction works again")
			}
		default:
			pause := pauses.Next()
			if failures.News(err) {
				sw.s.log.Warn("compaction failed", zap.Error(err), zap.Duration("retry in", pause))
			}
			again = time.After(pause)
		}
		select {
		case <-sw.woken:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass sweeps up to the compacted revision and then gives free pages back.
func (sw *compactor) pass(ctx context.Context) error {
	target := sw.s.compact.Load()
	sw.mu.Lock()
	from := sw.swept
	sw.mu.Unlock()
	if from >= target {
		return nil
	}
	start, rows := time.Now(), 0
	// Rows of the revision swept to last are looked at again: then it was the limit, and its tombstones had to stay.
	for next := idOf(from, 0); ; {
		n, last, err := sw.step(ctx, next, target)
		if err != nil {
			return err
		}
		rows += n
		if last == 0 {
			break
		}
		next = last + 1
	}
	if err := sw.finish(ctx, target); err != nil {
		return err
	}
	sw.mu.Lock()
	sw.swept = target
	close(sw.moved)
	sw.moved = make(chan struct{})
	sw.mu.Unlock()
	sw.s.metrics.compactionSeconds.Observe(time.Since(start).Seconds())
	sw.s.log.Debug("compacted", zap.Int64("revision", target), zap.Int("rows", rows), zap.Duration("took", time.Since(start)))
	return sw.vacuum(ctx, 1024, 4)
}

type compactRow struct {
	id, prev int64
	dead     bool
	key      []byte
}

// step looks at the next rows up to target and deletes what they make superfluous. last is the id of the last row
// looked at, 0 when there was none.
func (sw *compactor) step(ctx context.Context, from, target int64) (deleted int, last int64, err error) {
	var batch []compactRow
	err = sw.s.view(ctx, func(sn *snap) error {
		return sn.c.query("SELECT id, prev, version, CASE version WHEN 0 THEN key END FROM log WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
			func(v []driver.Value) (bool, error) {
				batch = append(batch, compactRow{asInt(v[0]), asInt(v[1]), asInt(v[2]) == 0, asBytes(v[3])})
				return true, nil
			}, from, lastID(target), int64(compactRows))
	})
	if err != nil || len(batch) == 0 {
		return 0, 0, err
	}
	last = batch[len(batch)-1].id
	work := batch[:0]
	for _, r := range batch {
		if r.prev != 0 || r.dead && revOf(r.id) < target {
			work = append(work, r)
		}
	}
	if len(work) == 0 {
		return 0, last, nil
	}
	err = sw.s.propose(ctx, 64*len(work), func(tx *writeTx) error {
		if t := sw.s.keyCounts; t.saved < target && !tx.counted {
			if err := t.save(tx); err != nil {
				return err
			}
		}
		for _, r := range work {
			if r.prev != 0 {
				if err := tx.exec("DELETE FROM log WHERE id = ?1", r.prev); err != nil {
					return err
				}
			}
			if r.dead && revOf(r.id) < target {
				if err := tx.exec("DELETE FROM cur WHERE key = ?1 AND id = ?2", blob(r.key), r.id); err != nil {
					return err
				}
				if err := tx.exec("DELETE FROM log WHERE id = ?1", r.id); err != nil {
					return err
				}
			}
		}
		return nil
	}, nil)
	return len(work), last, err
}

// finish notes in the file that all up to target is swept.
func (sw *compactor) finish(ctx context.Context, target int64) error {
	return sw.s.propose(ctx, 32, func(tx *writeTx) error {
		tx.wrote = true
		return setMeta(tx.w.c, metaSwept, target)
	}, nil)
}

// vacuum shrinks the file while more than keep pages of it are free and they are more than one in share, a few pages a
// transaction. A share of 0 is any.
func (sw *compactor) vacuum(ctx context.Context, keep, share int64) error {
	for {
		free, err := sw.s.count(ctx, "PRAGMA freelist_count")
		if err != nil {
			return err
		}
		pages, err := sw.s.count(ctx, "PRAGMA page_count")
		if err != nil {
			return err
		}
		// Some room is left: the next writes take it, and would else make the file grow again.
		if free <= keep || share > 0 && free < pages/share {
			return nil
		}
		if err := sw.s.propose(ctx, int(vacuumPages*sw.s.pageBytes), func(tx *writeTx) error {
			tx.wrote = true
			tx.w.frames += vacuumPages
			// It gives a row for each page and stops when nobody asks for the next.
			return tx.w.c.query("PRAGMA incremental_vacuum(64)", func([]driver.Value) (bool, error) { return true, nil })
		}, nil); err != nil {
			return err
		}
	}
}
