package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// syncMode is how soon a transaction reaches the disk.
type syncMode int

const (
	// modeSynced has it there when commit returns. With relaxed durability the kernel has it then.
	modeSynced syncMode = iota
	// modeUnsynced has it in the write-ahead log, without fsync. The next synced commit takes it
	// along.
	modeUnsynced
	// modeDeferred has it in memory only. The next commit of another mode writes it first.
	modeDeferred
)

// journal decides how transactions become durable: begin, then commit or abort. It owns the writing
// connection.
//
// Puts of Options.DeferredKeys that come when nothing else is written are deferred. They go into
// the file together: with the next other write, before a read of one of them, when there are many,
// or after deferFor. A heartbeat written alone costs five pages: its own, and those of the B-trees
// that lead to it. Several written at once share the latter, and what the file system adds to each
// write. A deferred transaction runs on the file like any other, and is then rolled back: only its
// rows are kept, and the next transaction inserts them before it does anything else. A crash loses
// them. Then the next start skips more revisions than can have been deferred, so that none comes
// back with other content.
//
// Writes flushed on behalf of a read are committed without fsync. Later synced commits rely on
// them: if the log has a hole, everything after it is lost in a power cut. So after a failed fsync
// the log is written again before anything else is acknowledged.
//
// The writer's goroutine alone uses it, except for covers and the deferrable methods.
type journal struct {
	c         *conn
	wal       *syncFile
	log       *zap.Logger
	metrics   *metrics
	alarm     *atomic.Bool // the last write found no room
	pageBytes int64
	relaxed   bool
	prefixes  [][]byte // of deferrable keys; none when relaxed

	rev      int64         // the newest revision, committed or deferred
	frames   int64         // written to the log since the last checkpoint, at most
	lastSync time.Duration // what the last COMMIT took
	full     bool          // the connection syncs its commits
	marked   bool          // the file is marked as one whose writes may be deferred
	refused  bool          // the file did not take the deferred rows, so no more are deferred
	unsynced int64         // revisions committed since the last sync
	deferred []row
	timer    *time.Timer
	due      <-chan time.Time // fires when flush must run; nil when there is nothing to flush
	failures retry.Failures
	// flushFailures counts failures of flush alone, which reach no caller.
	flushFailures retry.Failures

	// What readers see of deferred. top is its newest revision. keys and top are guarded by mu.
	pending atomic.Bool
	mu      sync.Mutex
	keys    map[string]struct{}
	top     int64
}

const (
	// deferFor is how long a write is deferred or unsynced at most.
	deferFor = time.Minute
	// maxDeferred and maxUnsynced are how many revisions may be deferred and unsynced; deferredSkip
	// is how many are skipped after a crash.
	maxDeferred  = 64
	maxUnsynced  = 4096
	deferredSkip = 10_000
)

// Values of metaUnsynced.
const (
	allSynced        = 0
	noneSynced       = 1 // durability is relaxed
	deferredUnsynced = 2
)

func openJournal(o Options, c *conn, revs *revisions) (*journal, error) {
	f, err := os.OpenFile(o.Path+"-wal", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open log to sync it: %w", err)
	}
	j := &journal{
		c:       c,
		wal:     &syncFile{f: f, copying: &sync.Mutex{}},
		log:     o.Logger,
		relaxed: o.Durability == DurabilityRelaxed,
		full:    o.Durability == DurabilityFull,
		rev:     revs.published.Load(),
		timer:   time.NewTimer(time.Hour),
		keys:    map[string]struct{}{},
	}
	j.timer.Stop()
	if !j.relaxed {
		for _, p := range o.DeferredKeys {
			j.prefixes = append(j.prefixes, []byte(p))
		}
	}
	return j, nil
}

// deferrablePut reports whether a put may be deferred. One that attaches a lease may not: leases
// are not deferred.
func (j *journal) deferrablePut(r *pb.PutRequest) bool {
	for _, p := range j.prefixes {
		if bytes.HasPrefix(r.Key, p) {
			return r.Lease == 0
		}
	}
	return false
}

// deferrableTxn reports whether a transaction can only change deferrable keys.
func (j *journal) deferrableTxn(r *pb.TxnRequest) bool {
	if len(j.prefixes) == 0 {
		return false
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch v := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
			case *pb.RequestOp_RequestPut:
				if !j.deferrablePut(v.RequestPut) {
					return false
				}
			default:
				return false
			}
		}
	}
	return true
}

// covers is what a read of some keys must know before it takes its snapshot: whether one of them is
// deferred, and if not, the newest deferred revision. Deferred revisions follow directly on those
// in the file, so for all other keys the snapshot is the state at that revision.
func (j *journal) covers(r span) (deferred bool, top int64) {
	if !j.pending.Load() {
		return false, 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for k := range j.keys {
		if r.contains([]byte(k)) {
			return true, 0
		}
	}
	return false, j.top
}

// mode returns the laziest mode for n writes of deferrable keys.
func (j *journal) mode(n int) syncMode {
	if len(j.deferred)+n <= maxDeferred && j.unsynced < maxUnsynced && !j.refused && !j.wal.torn.Load() {
		return modeDeferred
	}
	return j.fileMode(n)
}

// fileMode is mode for writes that must go into the file.
func (j *journal) fileMode(n int) syncMode {
	if j.marked && j.unsynced+int64(len(j.deferred)+n) <= maxUnsynced {
		return modeUnsynced
	}
	return modeSynced
}

// begin starts tx, of which mode is set, and writes the deferred rows first.
func (j *journal) begin(tx *writeTx) error {
	if tx.mode == modeDeferred {
		if err := j.mark(); err != nil {
			return err
		}
	} else {
		if err := j.repair(); err != nil {
			return err
		}
		if err := j.syncCommits(tx.mode == modeSynced); err != nil {
			return err
		}
	}
	if err := j.c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin write: %w", fault(err))
	}
	tx.c, tx.rev, tx.pageBytes = j.c, j.rev, j.pageBytes
	for i := range j.deferred {
		if err := tx.insert(&j.deferred[i]); err != nil {
			return fmt.Errorf("write what was deferred: %w", j.abort(tx, err))
		}
	}
	return nil
}

// mark notes in the file that writes may be deferred.
func (j *journal) mark() error {
	if j.marked {
		return nil
	}
	if err := j.syncCommits(true); err != nil {
		return err
	}
	if err := setMeta(j.c, metaUnsynced, deferredUnsynced); err != nil {
		return fmt.Errorf("note that writes are deferred: %w", fault(err))
	}
	j.marked = true
	return nil
}

// syncCommits sets whether COMMIT waits for the disk.
func (j *journal) syncCommits(full bool) error {
	if j.relaxed || j.full == full {
		return nil
	}
	mode := "NORMAL"
	if full {
		mode = "FULL"
	}
	if err := j.c.script("PRAGMA synchronous = " + mode); err != nil {
		return fmt.Errorf("set how to sync: %w", fault(err))
	}
	j.full = full
	return nil
}

// commit makes tx as durable as its mode asks for. After an error, nothing of it is in the file.
func (j *journal) commit(tx *writeTx) error {
	if tx.mode == modeDeferred {
		j.rollback()
		j.hold(tx)
		j.rev = tx.rev
		return nil
	}
	start := time.Now()
	err := j.c.exec("COMMIT")
	j.lastSync = time.Since(start)
	if err != nil {
		j.wal.torn.Store(true) // its sync may be what failed
		return fmt.Errorf("commit write: %w", j.abort(tx, err))
	}
	j.frames += tx.frames
	if tx.wrote {
		j.metrics.commitSeconds.Observe(j.lastSync.Seconds())
		j.alarm.Store(false)
		if j.failures.Recovered() {
			j.log.Info("writes reach the disk again")
		}
		j.written(tx)
	}
	j.rev = tx.rev
	return nil
}

// abort rolls tx back because of err, and returns err classified.
func (j *journal) abort(tx *writeTx, err error) error {
	j.rollback()
	err = fault(err)
	if tx.mode == modeDeferred {
		return err // the writer tries again with another mode
	}
	j.frames += tx.frames // SQLite may have spilled them
	if errors.Is(err, ErrNoSpace) {
		j.alarm.Store(true)
	}
	if j.failures.News(err) {
		j.log.Error("write failed", zap.Error(err))
	}
	return err
}

func (j *journal) rollback() {
	if j.c.c.AutoCommit() {
		return // SQLite has rolled back by itself, as it does after some errors
	}
	if err := j.c.exec("ROLLBACK"); err != nil {
		j.log.Error("rollback failed", zap.Error(err))
	}
}

// hold keeps the rows of a deferred transaction.
func (j *journal) hold(tx *writeTx) {
	if len(tx.changes) == 0 {
		return
	}
	j.mu.Lock()
	for i := range tx.changes {
		j.deferred = append(j.deferred, tx.changes[i].row)
		j.keys[string(tx.changes[i].row.key)] = struct{}{}
	}
	j.top = tx.rev
	j.mu.Unlock()
	j.pending.Store(true)
	j.arm()
}

// written accounts for a commit. The deferred rows are in the file now.
func (j *journal) written(tx *writeTx) {
	j.unsynced += tx.rev - j.rev + int64(len(j.deferred))
	j.mu.Lock()
	j.deferred, j.refused = nil, false
	clear(j.keys)
	j.top = 0
	j.mu.Unlock()
	j.pending.Store(false)
	if tx.mode == modeSynced {
		j.synced()
	} else {
		j.arm()
	}
}

// synced accounts for everything in the log being on disk.
func (j *journal) synced() {
	j.unsynced, j.due = 0, nil
	j.timer.Stop()
}

func (j *journal) arm() {
	if j.due == nil {
		j.timer.Reset(deferFor)
		j.due = j.timer.C
	}
}

// flush brings everything that is deferred or unsynced to the disk. If that fails, it is due again
// after deferFor.
func (j *journal) flush() {
	j.due = nil
	var err error
	if len(j.deferred) > 0 {
		tx := &writeTx{mode: modeSynced}
		if err = j.begin(tx); err == nil {
			err = j.commit(tx)
		}
	} else if err = j.wal.sync(); err == nil {
		j.synced()
	}
	if err == nil {
		j.flushFailures.Recovered()
	} else {
		if j.flushFailures.News(err) {
			j.log.Error("deferred writes did not reach the disk", zap.Error(err), zap.Duration("retry in", deferFor))
		}
		j.arm()
	}
}

// repair writes the log again after a failed sync. It may contain frames of a transaction that was
// rolled back, which SQLite ignores.
func (j *journal) repair() error {
	if !j.wal.torn.Load() {
		return nil
	}
	if err := j.wal.repair(); err != nil {
		return fmt.Errorf("write log again: %w", err)
	}
	if len(j.deferred) == 0 {
		j.synced()
	}
	return nil
}

// markSynced notes in the file that no write can be lost any more, if that is so.
func (j *journal) markSynced() error {
	if len(j.deferred) > 0 || !j.relaxed && !j.marked {
		return nil
	}
	return errors.Join(j.c.script("PRAGMA synchronous = FULL"), setMeta(j.c, metaUnsynced, allSynced))
}

// close closes the connection, which as the last one removes the log once it is copied back.
func (j *journal) close() error {
	j.timer.Stop()
	return errors.Join(j.c.script("PRAGMA wal_checkpoint(TRUNCATE)"), j.c.close(), j.wal.f.Close())
}
