package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
)

// journal are writes of keys in Options.DeferredKeys that come when nothing else is written. They are held in memory and
// go into the file together: with the next other write, before a read of one of them, when there are many, or after deferFor.
// A heartbeat in the file is five pages, its own and those that lead to it; of several at once the latter are shared,
// and so is what the file system adds to each write.
//
// What is held is checked like every other write, in a transaction of all that is held, which is rolled back. A crash
// loses it. Then the next start skips more revisions than can have been held, so that none comes back with other content.
//
// What a read had written is not synced at once. That is safe for what comes after only as long as syncs work: a power
// cut loses all that stands in the log behind a gap. So when a sync does not work, after which the kernel takes pages for
// clean that it did not write, the log is written again before anything else is acknowledged.
//
// All of this is the business of the writer's goroutine alone, but for what readers ask.
type journal struct {
	some atomic.Bool // something is held
	mu   sync.Mutex
	keys map[string]struct{} // that are held; guarded by mu
	top  int64               // the newest revision held; guarded by mu

	prefixes [][]byte // fixed
	log      *os.File // the write-ahead log
	full     bool     // the connection syncs its commits
	marked   bool     // the file says that there may be late writes
	held     []row
	refused  bool  // the file did not take what is held, so nothing more is
	unsynced int64 // revisions committed since the last sync
	timer    *time.Timer
	due      <-chan time.Time // fires when they are to be synced; nil when there are none
}

const (
	// deferFor is how long a late write waits at most for the disk.
	deferFor = time.Minute
	// maxDeferred and maxUnsynced are how many revisions may be held and wait for the disk; deferredSkip is how many are skipped
	// after a crash.
	maxDeferred  = 64
	maxUnsynced  = 4096
	deferredSkip = 10_000
)

// What metaUnsynced can be.
const (
	allSynced        = 0
	noneSynced       = 1 // durability is relaxed
	deferredUnsynced = 2
)

func newJournal(s *Store) (*journal, error) {
	f, err := os.OpenFile(s.opts.Path+"-wal", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open log to sync it: %w", err)
	}
	l := &journal{keys: map[string]struct{}{}, log: f, full: s.opts.Durability == DurabilityFull, timer: time.NewTimer(time.Hour)}
	l.timer.Stop()
	if l.full {
		for _, p := range s.opts.DeferredKeys {
			l.prefixes = append(l.prefixes, []byte(p))
		}
	}
	return l, nil
}

func (l *journal) close() error {
	l.timer.Stop()
	return l.log.Close()
}

// deferrablePut reports whether a put may be late. One that attaches a lease may not: leases are not late.
func (l *journal) deferrablePut(r *pb.PutRequest) bool {
	for _, p := range l.prefixes {
		if bytes.HasPrefix(r.Key, p) {
			return r.Lease == 0
		}
	}
	return false
}

// deferrableTxn reports whether all that a transaction can change are keys that may be late.
func (l *journal) deferrableTxn(r *pb.TxnRequest) bool {
	if len(l.prefixes) == 0 {
		return false
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch v := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
			case *pb.RequestOp_RequestPut:
				if !l.deferrablePut(v.RequestPut) {
					return false
				}
			default:
				return false
			}
		}
	}
	return true
}

// holdable reports whether a batch can be held. A batch without proposals writes what is held.
func (w *writer) holdable(batch []*proposal) bool {
	for _, p := range batch {
		if !p.late || p.writesHeld {
			return false
		}
	}
	return len(batch) > 0 && len(w.late.held)+len(batch) <= maxDeferred && w.late.unsynced < maxUnsynced && !w.late.refused && !w.torn.Load()
}

// hold tries a batch out and keeps what it changes in memory. An error means nothing of it is held.
func (w *writer) hold(batch []*proposal) error {
	l := w.late
	if !l.marked {
		if err := w.syncCommits(true); err != nil {
			return err
		}
		if err := setMeta(w.c, metaUnsynced, deferredUnsynced); err != nil {
			return fmt.Errorf("note that there are late writes: %w", fault(err))
		}
		l.marked = true
	}
	frames := w.frames
	tx, err := w.begin()
	if err != nil {
		return err
	}
	for _, p := range batch {
		if p.err = p.ctx.Err(); p.err != nil {
			continue
		}
		if err = tx.apply(p); err != nil {
			break
		}
	}
	w.rollback()
	w.frames = frames
	if err != nil {
		return fault(err)
	}
	if len(tx.changes) > 0 {
		l.mu.Lock()
		for i := range tx.changes {
			l.held = append(l.held, tx.changes[i].row)
			l.keys[string(tx.changes[i].row.key)] = struct{}{}
		}
		l.top = tx.rev
		l.mu.Unlock()
		l.some.Store(true)
		l.arm()
	}
	w.rev = tx.rev
	w.s.publish(tx.changes, tx.rev)
	return nil
}

// replay puts what is held into a transaction.
func (tx *writeTx) replay() error {
	for i := range tx.w.late.held {
		if err := tx.insert(&tx.w.late.held[i]); err != nil {
			return err
		}
	}
	return nil
}

// writeHeld has what is held put into the file, for a read that is to see it. On a full disk reads go on without it.
func (s *Store) writeHeld(ctx context.Context) error {
	if !s.w.late.some.Load() {
		return nil
	}
	err := s.submit(&proposal{ctx: ctx, late: true, writesHeld: true, done: make(chan struct{}), apply: func(*writeTx) error { return nil }})
	if errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

// seenBy is what a read of some keys has to know, asked before its snapshot is taken: whether any of them is held, and
// if not, the newest revision held. Held revisions come right after those in the file, so that without those keys the
// snapshot is what there is at that revision.
func (l *journal) seenBy(r span) (held bool, top int64) {
	if !l.some.Load() {
		return false, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.keys {
		if r.contains([]byte(k)) {
			return true, 0
		}
	}
	return false, l.top
}

// settle makes sure that a read of r will see all that was acknowledged, and gives the revision it is at least of.
func (s *Store) settle(ctx context.Context, r span) (top int64, err error) {
	held, top := s.w.late.seenBy(r)
	if held {
		err = s.writeHeld(ctx)
	}
	return top, err
}

// syncCommits makes the connection's commits wait for the disk, or not.
func (w *writer) syncCommits(full bool) error {
	if w.s.opts.Durability == DurabilityRelaxed || w.late.full == full {
		return nil
	}
	mode := "NORMAL"
	if full {
		mode = "FULL"
	}
	if err := w.c.script("PRAGMA synchronous = " + mode); err != nil {
		return fmt.Errorf("set how to sync: %w", fault(err))
	}
	w.late.full = full
	return nil
}

// mayWait reports whether a batch need not be synced at once.
func (w *writer) mayWait(batch []*proposal) bool {
	for _, p := range batch {
		if !p.late {
			return false
		}
	}
	return len(batch) > 0 && w.late.marked && w.late.unsynced+int64(len(w.late.held)+len(batch)) <= maxUnsynced
}

func (l *journal) arm() {
	if l.due == nil {
		l.timer.Reset(deferFor)
		l.due = l.timer.C
	}
}

// committed counts what a commit left to be synced. One that was synced took all before it along.
func (l *journal) committed(revisions int64, synced, wrote bool) {
	if !wrote {
		return
	}
	l.unsynced += revisions + int64(len(l.held))
	l.mu.Lock()
	l.held, l.refused = nil, false
	clear(l.keys)
	l.top = 0
	l.mu.Unlock()
	l.some.Store(false)
	if synced {
		l.settled()
		return
	}
	l.arm()
}

// settled is when all there was is on disk.
func (l *journal) settled() {
	l.unsynced, l.due = 0, nil
	l.timer.Stop()
}

// flush brings all late writes to the disk.
func (w *writer) flush() {
	w.late.due = nil
	var err error
	if len(w.late.held) > 0 {
		err = w.try(nil)
	} else if err = syncData(w.late.log); err != nil {
		w.torn.Store(true)
	} else {
		w.late.settled()
	}
	if err != nil {
		w.s.log.Error("late writes did not reach the disk and are tried again", zap.Error(err), zap.Duration("in", deferFor))
		w.late.arm()
	}
}

// mend writes the log again after a sync of it that did not work.
func (w *writer) mend() error {
	if !w.torn.Load() {
		return nil
	}
	w.cp.copying.Lock()
	defer w.cp.copying.Unlock()
	// What was rolled back is in the way of nothing, but it does no harm to write that too.
	if err := rewrite(w.late.log); err != nil {
		return fmt.Errorf("write log again: %w", err)
	}
	w.torn.Store(false)
	if len(w.late.held) == 0 {
		w.late.settled()
	}
	return nil
}
