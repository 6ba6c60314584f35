package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// compactor deletes what compaction made superfluous, a few rows a transaction, so that writers
// hardly wait. A row is superfluous when its successor, the row whose prev it is, is not newer than
// the compacted revision; a tombstone, when it is older itself. So going once over the rows from
// the last sweep to the compacted revision finds all.
type compactor struct {
	log       *zap.Logger
	metrics   *metrics
	revs      *revisions
	reads     *readers
	writes    *writer
	keys      *keyCounts
	pageBytes int64
	closed    <-chan struct{} // when the store closes

	woken chan struct{}

	mu    sync.Mutex
	swept int64         // the revision up to which all is deleted
	moved chan struct{} // closed and replaced when swept changes
}

// compact makes revisions before rev unreadable, and returns the store's revision. run deletes
// afterwards, in steps, what that makes superfluous.
func (cr *compactor) compact(ctx context.Context, rev int64) (int64, error) {
	now := int64(0)
	err := cr.writes.submit(&proposal{
		ctx:  ctx,
		size: 32,
		apply: func(tx *writeTx) error {
			switch {
			case rev <= cr.revs.compacted.Load():
				return ErrCompacted
			case rev > tx.rev:
				return ErrFutureRevision
			}
			now = tx.rev
			tx.wrote = true
			return setMeta(tx.c, metaCompacted, rev)
		},
		published: func() {
			// Not before: reads at the revision that counts until then would seem to ask for a
			// compacted one.
			cr.revs.compacted.Store(max(cr.revs.compacted.Load(), rev))
			cr.wake()
		},
	})
	if err != nil {
		return 0, err // and now is still the writer's
	}
	return now, nil
}

func (cr *compactor) wake() {
	select {
	case cr.woken <- struct{}{}:
	default:
	}
}

// wait waits until everything up to rev is swept.
func (cr *compactor) wait(ctx context.Context, rev int64) error {
	for {
		cr.mu.Lock()
		done, moved := cr.swept >= rev, cr.moved
		cr.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-cr.closed:
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

func (cr *compactor) run(ctx context.Context) error {
	pauses := retry.Backoff{First: time.Second, Last: time.Minute}
	var failures retry.Failures
	for {
		err := cr.pass(ctx)
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil, errors.Is(err, ErrClosed):
			return nil
		case err == nil:
			pauses.Reset()
			if failures.Recovered() {
				cr.log.Info("compaction works again")
			}
		default:
			pause := pauses.Next()
			if failures.News(err) {
				cr.log.Warn("compaction failed", zap.Error(err), zap.Duration("retry in", pause))
			}
			again = time.After(pause)
		}
		select {
		case <-cr.woken:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass sweeps up to the compacted revision and then gives free pages back.
func (cr *compactor) pass(ctx context.Context) error {
	target := cr.revs.compacted.Load()
	cr.mu.Lock()
	from := cr.swept
	cr.mu.Unlock()
	if from >= target {
		return nil
	}
	start, rows := time.Now(), 0
	// Rows of the revision swept to last are looked at again: then it was the limit, and its
	// tombstones had to stay.
	for next := idOf(from, 0); ; {
		n, last, err := cr.step(ctx, next, target)
		if err != nil {
			return err
		}
		rows += n
		if last == 0 {
			break
		}
		next = last + 1
	}
	if err := cr.finish(ctx, target); err != nil {
		return err
	}
	cr.mu.Lock()
	cr.swept = target
	close(cr.moved)
	cr.moved = make(chan struct{})
	cr.mu.Unlock()
	cr.metrics.compactionSeconds.Observe(time.Since(start).Seconds())
	cr.log.Debug("compacted", zap.Int64("revision", target), zap.Int("rows", rows),
		zap.Duration("took", time.Since(start)))
	return cr.vacuum(ctx, 1024, 4)
}

type compactRow struct {
	id, prev int64
	dead     bool
	key      []byte
}

// step looks at the next rows up to target and deletes what they make superfluous. last is the id
// of the last row looked at, 0 when there was none.
func (cr *compactor) step(ctx context.Context, from, target int64) (deleted int, last int64, err error) {
	var batch []compactRow
	err = cr.reads.view(ctx, func(sn *snap) error {
		return sn.c.query(
			"SELECT id, prev, version, CASE version WHEN 0 THEN key END FROM log WHERE id BETWEEN ?1 AND ?2 ORDER BY "+
				"id LIMIT ?3",
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
	err = cr.writes.propose(ctx, 64*len(work), func(tx *writeTx) error {
		if t := cr.keys; t.saved < target && !tx.counted {
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
func (cr *compactor) finish(ctx context.Context, target int64) error {
	return cr.writes.propose(ctx, 32, func(tx *writeTx) error {
		tx.wrote = true
		return setMeta(tx.c, metaSwept, target)
	}, nil)
}

// vacuum shrinks the file while more than keep pages of it are free and they are more than one in
// share, a few pages a transaction. A share of 0 is any.
func (cr *compactor) vacuum(ctx context.Context, keep, share int64) error {
	for {
		free, err := cr.reads.count(ctx, "PRAGMA freelist_count")
		if err != nil {
			return err
		}
		pages, err := cr.reads.count(ctx, "PRAGMA page_count")
		if err != nil {
			return err
		}
		// Some room is left: the next writes take it, and would else make the file grow again.
		if free <= keep || share > 0 && free < pages/share {
			return nil
		}
		if err := cr.writes.propose(ctx, int(vacuumPages*cr.pageBytes), func(tx *writeTx) error {
			tx.wrote = true
			tx.frames += vacuumPages
			// It gives a row for each page and stops when nobody asks for the next.
			return tx.c.query("PRAGMA incremental_vacuum(64)", func([]driver.Value) (bool, error) { return true, nil })
		}, nil); err != nil {
			return err
		}
	}
}
