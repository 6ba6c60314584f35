package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

// checkpointer copies the write-ahead log back into the file beside the writer, on a connection of its own. The log
// starts over from its beginning only when all of it is copied, which while there are writes only the writer itself
// can bring about: it copies what little the checkpointer leaves.
type checkpointer struct {
	s     *Store
	c     *conn
	file  *os.File // the store's file, to sync it
	woken chan struct{}
	// almost is set when so little is left that the writer can copy it without being noticed.
	almost atomic.Bool
	busy   atomic.Bool
	// torn says that a sync of the file did not work, see mend.
	torn atomic.Bool
	// copying is held by who checkpoints or mends.
	copying sync.Mutex
	// stuck is set while a reader's old snapshot keeps the log from being copied.
	stuck atomic.Bool
	// passed is closed and made anew at the end of each pass. Guarded by mu.
	mu     sync.Mutex
	passed chan struct{}
}

const (
	// littleFrames is how much the writer copies and syncs itself.
	littleFrames = 128
	// copyAhead is how many sizes of the log the writer may be ahead of the copying before it waits for a pass, and
	// patience is how long at most.
	copyAhead = 4
	patience  = 20 * time.Millisecond
)

func newCheckpointer(s *Store, c *conn) (*checkpointer, error) {
	f, err := os.OpenFile(s.opts.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open store file to sync it: %w", err)
	}
	return &checkpointer{s: s, c: c, file: f, woken: make(chan struct{}, 1), passed: make(chan struct{})}, nil
}

// close leaves the file open: closing it would give up the locks of SQLite's connections, see closeFile.
func (cp *checkpointer) close() error { return cp.c.close() }

// closeFile is for when all connections are closed.
func (cp *checkpointer) closeFile() error { return cp.file.Close() }

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
			cp.s.log.Info("checkpoints work again")
		} else if err != nil && failures.News(err) {
			cp.s.log.Warn("checkpoint failed; the next one tries again", zap.Error(err))
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
	defer func() { cp.s.metrics.checkpointSeconds.Observe(time.Since(start).Seconds()) }()
	if err := cp.mend(); err != nil {
		return err
	}
	// SQLite syncs the file only when all is copied. Were that left to the writer, it would wait for everything that was
	// copied here to reach the disk. So each round syncs what it copied, and the next has only what came meanwhile.
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
		if err := syncData(cp.file); err != nil {
			cp.torn.Store(true)
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

// checkpoint copies what it can without waiting for anyone and tells how many frames of the log are left and copied.
// While something is torn it does nothing: the log must not start over before all of it is known to be in the file.
func (cp *checkpointer) checkpoint(c *conn) (left, copied int64, err error) {
	if !cp.copying.TryLock() {
		return littleFrames + 1, 0, nil // one at a time; the writer does not wait for it
	}
	defer cp.copying.Unlock()
	if cp.torn.Load() || cp.s.w.torn.Load() {
		return littleFrames + 1, 0, nil
	}
	err = c.query("PRAGMA wal_checkpoint(PASSIVE)", func(v []driver.Value) (bool, error) {
		if left, copied = asInt(v[1])-asInt(v[2]), asInt(v[2]); asInt(v[0]) != 0 {
			left = max(left, littleFrames+1)
		}
		return false, nil
	})
	if err != nil {
		// It syncs the log, and at times the file.
		cp.s.w.torn.Store(true)
		cp.torn.Store(true)
	}
	return left, copied, fault(err)
}

// mend writes the file again after a sync of it that did not work: the kernel takes the pages for clean that it could
// not write then, and SQLite does not copy them a second time.
func (cp *checkpointer) mend() error {
	if !cp.torn.Load() {
		return nil
	}
	cp.copying.Lock()
	defer cp.copying.Unlock()
	if err := rewrite(cp.file); err != nil {
		return fmt.Errorf("write store file again: %w", err)
	}
	cp.torn.Store(false)
	return nil
}

// rewrite writes what a file has to the disk, also where the kernel thinks that it is there.
func rewrite(f *os.File) error {
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := f.ReadAt(buf, off)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return syncData(f)
		}
		if err != nil {
			return err
		}
	}
}

// afterCommit keeps the log short. The count of frames is an estimate from above: SQLite does not tell without
// checkpointing.
func (w *writer) afterCommit() {
	if w.cp.almost.Swap(false) {
		left, _, err := w.cp.checkpoint(w.c)
		if err != nil {
			w.s.log.Warn("checkpoint did not work and is tried again later", zap.Error(err))
			return
		}
		w.frames = left
	}
	if w.frames*w.s.pageBytes < w.s.opts.WALBytes/2 {
		return
	}
	w.cp.mu.Lock()
	passed := w.cp.passed
	w.cp.mu.Unlock()
	if !w.cp.busy.Load() {
		w.cp.wake()
	}
	if w.frames*w.s.pageBytes < copyAhead*w.s.opts.WALBytes || w.cp.stuck.Load() {
		return
	}
	// When writes outrun the copying, a short wait after each commit is what keeps the log from growing for ever.
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-passed:
	case <-t.C:
	case <-w.stop:
	}
}

// fillLog writes zeros into the rest of the log's file, so that commits overwrite it in place: making a file longer
// costs a commit of the file system's journal each time, which is more than the write. SQLite takes zeros for the end
// of the log.
func fillLog(path string, size int64) error {
	f, err := os.OpenFile(path+"-wal", os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("look at log: %w", err), f.Close())
	}
	// One page of the kernel at a time, for its cache to hold it in pages of that size: it counts, and may write, a
	// larger one as a whole for every commit.
	zeros := make([]byte, 4096)
	for off := st.Size(); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return errors.Join(fmt.Errorf("fill log: %w", err), f.Truncate(st.Size()), f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}
