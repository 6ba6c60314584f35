package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
)

// change is one change of one key as watchers see it. prev is the version before, if there was one.
type change struct {
	event *mvccpb.Event
	prev  *mvccpb.KeyValue
	row   row
}

// proposal is a write waiting for its turn.
type proposal struct {
	ctx context.Context
	// apply does the write inside the batch's transaction. An answer that is an error must have changed nothing.
	apply func(tx *writeTx) error
	// committed, if set, runs in the writer after the commit and before anybody hears of the new revision; published, after
	// everybody can, and before the proposer is told.
	committed, published func()
	size                 int
	// late says that the write may be made durable a little later than it is acknowledged, see journal; writesHeld,
	// that what is held of these is to be written.
	late, writesHeld bool
	err              error
	done             chan struct{}
}

// writer is the one goroutine that changes the file. While a commit waits for the disk, proposals gather; the next
// commit takes them all.
type writer struct {
	s       *Store
	c       *conn
	cp      *checkpointer
	queue   chan *proposal
	stop    chan struct{}
	stopped chan struct{}
	wg      sync.WaitGroup
	rev     int64         // newest revision in the file
	frames  int64         // written to the write-ahead log since the last checkpoint, at most
	synced  time.Duration // what the last commit took to reach the disk
	late    *journal
	// torn says that a sync did not work while there were late writes, see journal.mend.
	torn atomic.Bool
}

const (
	maxBatch      = 1024
	maxBatchBytes = 8 << 20
)

func newWriter(s *Store, c, checkpoints *conn) (*writer, error) {
	late, err := newJournal(s)
	if err != nil {
		return nil, err
	}
	cp, err := newCheckpointer(s, checkpoints)
	if err != nil {
		return nil, errors.Join(err, late.log.Close())
	}
	w := &writer{s: s, c: c, cp: cp, queue: make(chan *proposal, maxBatch), stop: make(chan struct{}), stopped: make(chan struct{}),
		rev: s.rev.Load(), late: late}
	return w, nil
}

func (w *writer) start() {
	w.wg.Go(w.run)
	w.wg.Go(func() { w.cp.run(w.stop) })
}

// propose hands a write to the writer and waits until it is on disk or refused.
func (s *Store) propose(ctx context.Context, size int, apply func(tx *writeTx) error, committed func()) error {
	return s.submit(&proposal{ctx: ctx, apply: apply, committed: committed, size: size, done: make(chan struct{})})
}

func (s *Store) submit(p *proposal) error {
	ctx := p.ctx
	select {
	case s.w.queue <- p:
	case <-s.w.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.done:
		return p.err
	case <-s.w.stopped:
		// The writer answers what it took; only what stayed in the queue is left.
		select {
		case <-p.done:
			return p.err
		default:
			return ErrClosed
		}
	case <-ctx.Done():
		// The write may still happen, as with any cancelled call to a server.
		return ctx.Err()
	}
}

func (w *writer) run() {
	defer close(w.stopped)
	batch := make([]*proposal, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case p := <-w.queue:
			batch = append(batch, p)
		case <-w.late.due:
			w.flush()
			continue
		case <-w.stop:
			return
		}
		for bytes := batch[0].size; len(batch) < maxBatch && bytes < maxBatchBytes; {
			select {
			case p := <-w.queue:
				batch = append(batch, p)
				bytes += p.size
				continue
			default:
			}
			break
		}
		w.commit(batch)
		clear(batch)
	}
}

// commit applies a batch in one transaction. When the batch does not fit on the disk, or anything else goes wrong
// with the file, its proposals are tried one by one, so that one of them cannot fail the others.
func (w *writer) commit(batch []*proposal) {
	start := time.Now()
	held := w.holdable(batch) && w.hold(batch) == nil
	var err error
	if !held {
		err = w.try(batch)
		w.late.refused = err != nil && len(w.late.held) > 0
	}
	if err != nil && len(batch) > 1 {
		for _, p := range batch {
			p.err = nil
			if err := w.try([]*proposal{p}); err != nil {
				p.err = err
			}
		}
	} else if err != nil {
		batch[0].err = err
	}
	for _, p := range batch {
		close(p.done)
	}
	if held {
		return
	}
	committed := time.Now()
	w.s.metrics.batchSize.Observe(float64(len(batch)))
	w.afterCommit()
	if d := time.Since(start); d > w.s.opts.SlowAfter {
		w.s.log.Warn("commit is slow", zap.Duration("took", d), zap.Int("proposals", len(batch)), zap.Duration("sync", w.synced),
			zap.Duration("log", time.Since(committed)))
	}
}

// begin starts a transaction with what is held in it.
func (w *writer) begin() (*writeTx, error) {
	if err := w.c.exec("BEGIN IMMEDIATE"); err != nil {
		return nil, fmt.Errorf("begin write: %w", fault(err))
	}
	tx := &writeTx{w: w, rev: w.rev}
	if err := tx.replay(); err != nil {
		w.rollback()
		w.noteFault(err)
		return nil, fmt.Errorf("write what was held: %w", fault(err))
	}
	return tx, nil
}

// try applies and commits a batch; an error means nothing of it is in the file.
func (w *writer) try(batch []*proposal) error {
	if err := w.mend(); err != nil {
		return err
	}
	synced := !w.mayWait(batch)
	if err := w.syncCommits(synced); err != nil {
		return err
	}
	tx, err := w.begin()
	if err != nil {
		return err
	}
	for _, p := range batch {
		if p.ctx.Err() != nil {
			p.err = p.ctx.Err()
			continue
		}
		if err := tx.apply(p); err != nil {
			w.rollback()
			w.noteFault(err)
			return fault(err)
		}
	}
	var left map[int64]int64
	if tx.wrote {
		if left = w.s.lessor.stale(time.Now()); left != nil {
			for id, seconds := range left {
				if err := tx.exec("UPDATE lease SET remaining = ?2 WHERE id = ?1", id, seconds); err != nil {
					w.rollback()
					w.noteFault(err)
					return fault(err)
				}
			}
		}
	}
	if w.s.keyCounts.deltas > maxUnsavedDeltas && !tx.counted {
		if err := w.s.keyCounts.save(tx); err != nil {
			w.rollback()
			w.noteFault(err)
			return fault(err)
		}
	}
	start := time.Now()
	err = w.c.exec("COMMIT")
	w.synced = time.Since(start)
	if err != nil {
		w.rollback()
		w.noteFault(err)
		w.torn.Store(true)
		return fmt.Errorf("commit write: %w", fault(err))
	}
	w.late.committed(tx.rev-w.rev, synced, tx.wrote)
	if tx.wrote {
		w.s.metrics.commitSeconds.Observe(w.synced.Seconds())
		w.s.alarm.Store(false)
	}
	for id, seconds := range left {
		w.s.lessor.setSaved(id, seconds)
	}
	if tx.counted {
		w.s.keyCounts.saveDone()
	}
	for _, p := range batch {
		if p.err == nil && p.committed != nil {
			p.committed()
		}
	}
	w.rev = tx.rev
	w.s.publish(tx.changes, tx.rev)
	if err := w.s.keyCounts.split(w.c); err != nil {
		w.s.log.Warn("keys are counted more slowly", zap.Error(err))
	}
	for _, p := range batch {
		if p.err == nil && p.published != nil {
			p.published()
		}
	}
	return nil
}

func (w *writer) noteFault(err error) {
	if errors.Is(fault(err), ErrNoSpace) {
		w.s.alarm.Store(true)
	}
	w.s.log.Error("write was refused by the file", zap.Error(err))
}

func (w *writer) rollback() {
	// SQLite may have rolled back already; then this says so and nothing else is wrong.
	if w.c.c.AutoCommit() {
		return
	}
	if err := w.c.exec("ROLLBACK"); err != nil {
		w.s.log.Error("rollback failed", zap.Error(err))
	}
}

// publish tells everyone of new revisions, in order, after they are on disk.
func (s *Store) publish(changes []change, rev int64) {
	if rev == s.rev.Load() {
		return
	}
	for i := range changes {
		s.values.add(changes[i].row)
	}
	s.keyCounts.advance(changes, rev)
	s.rev.Store(rev)
	s.hub.publish(changes, rev)
}

func (w *writer) close() error {
	close(w.stop)
	w.wg.Wait()
	return w.cp.close()
}

// finish closes the writer's connection, which as the last one copies the log back and removes it.
func (w *writer) finish() error {
	w.flush()
	mended := errors.Join(w.mend(), w.cp.mend())
	errs := []error{mended, w.s.lessor.saveRemaining(w.c)}
	if mended == nil && len(w.late.held) == 0 && (w.s.opts.Durability == DurabilityRelaxed || w.late.marked) {
		errs = append(errs, w.c.script("PRAGMA synchronous = FULL"), setMeta(w.c, metaUnsynced, allSynced))
	}
	errs = append(errs, w.c.script("PRAGMA wal_checkpoint(TRUNCATE)"), w.c.close(), w.late.close(), w.cp.closeFile())
	return errors.Join(errs...)
}
