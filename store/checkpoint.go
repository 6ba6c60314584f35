package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// checkpointer copies the write-ahead log back into the file beside the writer, on a connection of
// its own. The log starts over from its beginning only when all of it is copied, which while there
// are writes only the writer itself can bring about: it copies what little the checkpointer leaves.
type checkpointer struct {
	log       *zap.Logger
	metrics   *metrics
	walBytes  int64 // size of the log at which it is copied
	pageBytes int64

	c     *conn
	file  *syncFile // the store file
	wal   *syncFile
	woken chan struct{}
	// almost is set when so little is left that the writer can copy it without being noticed.
	almost atomic.Bool
	busy   atomic.Bool
	// stuck is set while a reader's old snapshot keeps the log from being copied.
	stuck atomic.Bool
	// passed is closed and replaced at the end of each pass. Guarded by mu.
	mu     sync.Mutex
	passed chan struct{}
	// inline are failures of the writer's own checkpoints. The writer's goroutine alone uses it.
	inline retry.Failures
}

const (
	// littleFrames is how much the writer copies and syncs itself.
	littleFrames = 128
	// copyAhead is how many sizes of the log the writer may be ahead of the copying before it waits
	// for a pass, and patience is how long at most.
	copyAhead = 4
	patience  = 20 * time.Millisecond
)

func openCheckpointer(o Options, c *conn, wal *syncFile, pageBytes int64) (*checkpointer, error) {
	f, err := os.OpenFile(o.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open store file to sync it: %w", err)
	}
	return &checkpointer{
		log:       o.Logger,
		walBytes:  o.WALBytes,
		pageBytes: pageBytes,
		c:         c,
		file:      &syncFile{f: f, copying: wal.copying},
		wal:       wal,
		woken:     make(chan struct{}, 1),
		passed:    make(chan struct{}),
	}, nil
}

// close leaves the file open: closing it would give up the locks of SQLite's connections, see
// closeFile.
func (cp *checkpointer) close() error { return cp.c.close() }

// closeFile must come after all connections are closed.
func (cp *checkpointer) closeFile() error { return cp.file.f.Close() }

func (cp *checkpointer) wake() {
	select {
	case cp.woken <- struct{}{}:
	default:
	}
}

func (cp *checkpointer) run(stop <-chan struct{}) {
	var failures retry.Failures
	for {
		select {
		case <-cp.woken:
		case <-stop:
			return
		}
		cp.busy.Store(true)
		if err := cp.pass(stop); err == nil && failures.Recovered() {
			cp.log.Info("checkpoints work again")
		} else if err != nil && failures.News(err) {
			cp.log.Warn("checkpoint failed; the next one tries again", zap.Error(err))
		}
		cp.busy.Store(false)
		cp.mu.Lock()
		close(cp.passed)
		cp.passed = make(chan struct{})
		cp.mu.Unlock()
	}
}

// pass copies until little is left. A reader that holds an old snapshot ends it early.
func (cp *checkpointer) pass(stop <-chan struct{}) error {
	start := time.Now()
	defer func() { cp.metrics.checkpointSeconds.Observe(time.Since(start).Seconds()) }()
	if err := cp.repair(); err != nil {
		return err
	}
	// SQLite syncs the file only when all is copied. Were that left to the writer, it would wait
	// for everything that was copied here to reach the disk. So each round syncs what it copied,
	// and the next has only what came meanwhile.
	var copied int64
	for range 8 {
		before := copied
		var left int64
		var err error
		if left, copied, err = cp.checkpoint(cp.c); err != nil {
			return err
		}
		cp.stuck.Store(left > 0 && copied == before)
		if cp.stuck.Load() {
			return nil
		}
		if copied < before {
			before = 0 // the log has started over
		}
		if left == 0 || left+copied-before <= littleFrames {
			cp.almost.Store(true)
			return nil
		}
		if err := cp.file.sync(); err != nil {
			return fmt.Errorf("sync store file: %w", err)
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
	return nil
}

// checkpoint copies what it can without waiting for anyone, and returns how many frames of the log
// are left and copied. While a file is torn it does nothing: the log must not start over before all
// of it is known to be in the store file.
func (cp *checkpointer) checkpoint(c *conn) (left, copied int64, err error) {
	if !cp.wal.copying.TryLock() {
		return littleFrames + 1, 0, nil // one at a time; the writer does not wait for it
	}
	defer cp.wal.copying.Unlock()
	if cp.file.torn.Load() || cp.wal.torn.Load() {
		return littleFrames + 1, 0, nil
	}
	err = c.query("PRAGMA wal_checkpoint(PASSIVE)", func(v []driver.Value) (bool, error) {
		if left, copied = asInt(v[1])-asInt(v[2]), asInt(v[2]); asInt(v[0]) != 0 {
			left = max(left, littleFrames+1)
		}
		return false, nil
	})
	if err != nil {
		// It syncs the log, and at times the file. Which sync failed, if one did, SQLite does not
		// say.
		cp.wal.torn.Store(true)
		cp.file.torn.Store(true)
	}
	return left, copied, fault(err)
}

// repair writes the store file again after a failed sync.
func (cp *checkpointer) repair() error {
	if err := cp.file.repair(); err != nil {
		return fmt.Errorf("write store file again: %w", err)
	}
	return nil
}

// afterCommit keeps the log short. It takes how many frames may be in the log since the last
// checkpoint, and returns the same after its own: an upper bound, as SQLite does not report it
// without a checkpoint. The writer calls it, with its connection.
func (cp *checkpointer) afterCommit(c *conn, frames int64, stop <-chan struct{}) int64 {
	if cp.almost.Swap(false) {
		left, _, err := cp.checkpoint(c)
		if err != nil {
			if cp.inline.News(err) {
				cp.log.Warn("checkpoint failed; the next one tries again", zap.Error(err))
			}
			return frames
		}
		if cp.inline.Recovered() {
			cp.log.Info("checkpoints work again")
		}
		frames = left
	}
	if frames*cp.pageBytes < cp.walBytes/2 {
		return frames
	}
	cp.mu.Lock()
	passed := cp.passed
	cp.mu.Unlock()
	if !cp.busy.Load() {
		cp.wake()
	}
	if frames*cp.pageBytes < copyAhead*cp.walBytes || cp.stuck.Load() {
		return frames
	}
	// When writes outrun the copying, a short wait after each commit keeps the log from growing
	// without bound.
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-passed:
	case <-t.C:
	case <-stop:
	}
	return frames
}

// fillLog writes zeros into the rest of the log's file, so that commits overwrite it in place:
// making a file longer costs a commit of the file system's journal each time, which is more than
// the write. SQLite takes zeros for the end of the log.
func fillLog(path string, size int64) error {
	f, err := os.OpenFile(path+"-wal", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("look at log: %w", err), f.Close())
	}
	// One page of the kernel at a time, for its cache to hold it in pages of that size: it counts,
	// and may write, a larger one as a whole for every commit.
	zeros := make([]byte, 4096)
	for off := st.Size(); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return errors.Join(fmt.Errorf("fill log: %w", err), f.Truncate(st.Size()), f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}
