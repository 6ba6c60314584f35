package store

import (
	"context"
	"errors"
	"sync"
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

// proposal is a write that waits for its turn.
type proposal struct {
	ctx context.Context
	// apply does the write inside the batch's transaction. When it refuses the write with an error,
	// it must not have changed anything.
	apply func(tx *writeTx) error
	// committed, if set, runs in the writer after the commit and before anyone can see the new
	// revision; published, after everyone can and before the proposer gets its result.
	committed, published func()
	size                 int
	// deferrable allows the journal to defer the write; flush asks for deferred writes to go into
	// the file.
	deferrable, flush bool
	err               error
	done              chan struct{}
}

// writer queues writes. One goroutine takes them from the queue and changes the file; while a
// commit waits for the disk, proposals gather, and the next commit takes them all.
type writer struct {
	log       *zap.Logger
	metrics   *metrics
	slowAfter time.Duration

	journal *journal
	cp      *checkpointer
	lessor  *lessor
	keys    *keyCounts
	values  *valueCache
	revs    *revisions
	hub     *hub

	queue   chan *proposal
	stop    chan struct{}
	stopped chan struct{}
	wg      sync.WaitGroup
}

const (
	maxBatch      = 1024
	maxBatchBytes = 8 << 20
)

func (w *writer) start() {
	w.queue, w.stop, w.stopped = make(chan *proposal, maxBatch), make(chan struct{}), make(chan struct{})
	w.wg.Go(w.run)
	w.wg.Go(func() { w.cp.run(w.stop) })
}

// propose hands a write to the writer and waits until it is durable or refused.
func (w *writer) propose(ctx context.Context, size int, apply func(tx *writeTx) error, committed func()) error {
	return w.submit(&proposal{
		ctx:       ctx,
		apply:     apply,
		committed: committed,
		size:      size,
	})
}

func (w *writer) submit(p *proposal) error {
	p.done = make(chan struct{})
	ctx := p.ctx
	select {
	case w.queue <- p:
	case <-w.stop:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.done:
		return p.err
	case <-w.stopped:
		// The writer finishes every proposal that it took; only those still in the queue are left.
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

// flush has deferred writes put into the file, for a read that must see them. On a full disk reads
// go on without them.
func (w *writer) flush(ctx context.Context) error {
	if !w.journal.pending.Load() {
		return nil
	}
	err := w.submit(&proposal{
		ctx:        ctx,
		deferrable: true,
		flush:      true,
		apply:      func(*writeTx) error { return nil },
	})
	if errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

func (w *writer) run() {
	defer close(w.stopped)
	batch := make([]*proposal, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case p := <-w.queue:
			batch = append(batch, p)
		case <-w.journal.due:
			w.journal.flush()
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
		w.write(batch)
		clear(batch)
	}
}

// modes returns the sync mode of a batch, and the one to fall back to if it must go into the file.
func (w *writer) modes(batch []*proposal) (mode, fileMode syncMode) {
	flush := false
	for _, p := range batch {
		if !p.deferrable {
			return modeSynced, modeSynced
		}
		flush = flush || p.flush
	}
	fileMode = w.journal.fileMode(len(batch))
	if flush {
		return fileMode, fileMode
	}
	return w.journal.mode(len(batch)), fileMode
}

// write applies a batch in one transaction. When the batch does not fit on the disk, or the file
// fails in another way, its proposals are tried one by one, so that one of them cannot fail the
// others.
func (w *writer) write(batch []*proposal) {
	start := time.Now()
	mode, fileMode := w.modes(batch)
	err := w.try(batch, mode)
	if err != nil && mode == modeDeferred {
		mode = fileMode
		err = w.try(batch, mode)
	}
	if mode != modeDeferred {
		w.journal.refused = err != nil && len(w.journal.deferred) > 0
	}
	if err != nil && len(batch) > 1 {
		for i, p := range batch {
			_, fileMode := w.modes(batch[i : i+1])
			p.err = nil
			if err := w.try(batch[i:i+1], fileMode); err != nil {
				p.err = err
			}
		}
	} else if err != nil {
		batch[0].err = err
	}
	for _, p := range batch {
		close(p.done)
	}
	if mode == modeDeferred {
		return
	}
	done := time.Now()
	w.metrics.batchSize.Observe(float64(len(batch)))
	w.journal.frames = w.cp.afterCommit(w.journal.c, w.journal.frames, w.stop)
	if d := time.Since(start); d > w.slowAfter {
		w.log.Warn("commit is slow", zap.Duration("took", d), zap.Int("proposals", len(batch)),
			zap.Duration("sync", w.journal.lastSync), zap.Duration("log", time.Since(done)))
	}
}

// try applies and commits a batch; an error means that nothing of it has happened.
func (w *writer) try(batch []*proposal, mode syncMode) error {
	tx := &writeTx{
		mode:   mode,
		lessor: w.lessor,
		keys:   w.keys,
		values: w.values,
		revs:   w.revs,
	}
	if err := w.journal.begin(tx); err != nil {
		return err
	}
	for _, p := range batch {
		if p.err = p.ctx.Err(); p.err != nil {
			continue
		}
		if err := tx.apply(p); err != nil {
			return w.journal.abort(tx, err)
		}
	}
	var left map[int64]int64
	if mode != modeDeferred {
		var err error
		if left, err = w.saveAlong(tx); err != nil {
			return w.journal.abort(tx, err)
		}
	}
	if err := w.journal.commit(tx); err != nil {
		return err
	}
	for id, seconds := range left {
		w.lessor.setSaved(id, seconds)
	}
	if tx.counted {
		w.keys.saveDone()
	}
	for _, p := range batch {
		if p.err == nil && p.committed != nil {
			p.committed()
		}
	}
	w.publish(tx.changes, tx.rev)
	if mode != modeDeferred { // the file must be at the revision that the counts are of
		if err := w.keys.split(w.journal.c); err != nil {
			w.log.Warn("keys are counted more slowly", zap.Error(err))
		}
	}
	for _, p := range batch {
		if p.err == nil && p.published != nil {
			p.published()
		}
	}
	return nil
}

// saveAlong adds to a transaction what the file should know by now, so that it costs no commit of
// its own.
func (w *writer) saveAlong(tx *writeTx) (left map[int64]int64, err error) {
	if tx.wrote {
		left = w.lessor.stale(time.Now())
		for id, seconds := range left {
			if err := tx.exec("UPDATE lease SET remaining = ?2 WHERE id = ?1", id, seconds); err != nil {
				return nil, err
			}
		}
	}
	if w.keys.deltas > maxUnsavedDeltas && !tx.counted {
		return left, w.keys.save(tx)
	}
	return left, nil
}

// publish shows new revisions to everyone, in order, after their commit.
func (w *writer) publish(changes []change, rev int64) {
	if rev == w.revs.published.Load() {
		return
	}
	for i := range changes {
		w.values.add(changes[i].row)
	}
	w.keys.advance(changes, rev)
	w.revs.published.Store(rev)
	w.hub.publish(changes, rev)
}

// close ends the writer's goroutines.
func (w *writer) close() error {
	close(w.stop)
	w.wg.Wait()
	return w.cp.close()
}

// finish closes the file, after all other connections.
func (w *writer) finish() error {
	w.journal.flush()
	repaired := errors.Join(w.journal.repair(), w.cp.repair())
	errs := []error{repaired, w.lessor.saveRemaining(w.journal.c)}
	if repaired == nil {
		errs = append(errs, w.journal.markSynced())
	}
	return errors.Join(append(errs, w.journal.close(), w.cp.closeFile())...)
}
