package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// checkpointer copies the write-ahead log back into the file beside the writer, on a connection of its own. The log
// starts over from its beginning only when all of it is copied, which while there are writes only the writer itself
// can bring about: it copies what little the checkpointer leaves.
type checkpointer struct {
	s     *Store
	c     *conn
	woken chan struct{}
	// almost is set when so little is left that the writer can copy it without being noticed.
	almost atomic.Bool
	busy   atomic.Bool
}

// littleFrames is how much the writer copies itself.
const littleFrames = 128

func (cp *checkpointer) wake() {
	select {
	case cp.woken <- struct{}{}:
	default:
	}
}

func (cp *checkpointer) run(stop <-chan struct{}) {
	for {
		select {
		case <-cp.woken:
		case <-stop:
			return
		}
		cp.busy.Store(true)
		if err := cp.pass(stop); err != nil {
			cp.s.log.Warn("checkpoint did not work and is tried again later", zap.Error(err))
		}
		cp.busy.Store(false)
	}
}

// pass copies until little is left. A reader that holds an old snapshot ends it early.
func (cp *checkpointer) pass(stop <-chan struct{}) error {
	start := time.Now()
	defer func() { cp.s.metrics.checkpointSeconds.Observe(time.Since(start).Seconds()) }()
	left := int64(0)
	for range 8 {
		var err error
		if left, err = checkpoint(cp.c); err != nil {
			return err
		}
		if left <= littleFrames {
			break
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
	// When writes outrun the copying, a short wait now and then is what keeps the log from growing for ever.
	if left <= 4*littleFrames || left*cp.s.pageBytes > 8*cp.s.opts.WALBytes {
		cp.almost.Store(true)
	}
	return nil
}

// checkpoint copies what it can without waiting for anyone and tells how many frames are left.
func checkpoint(c *conn) (left int64, err error) {
	err = c.query("PRAGMA wal_checkpoint(PASSIVE)", func(v []driver.Value) (bool, error) {
		if left = asInt(v[1]) - asInt(v[2]); asInt(v[0]) != 0 {
			left = max(left, littleFrames+1)
		}
		return false, nil
	})
	return left, fault(err)
}

// afterCommit keeps the log short. The count of frames is an estimate from above: SQLite does not tell without
// checkpointing.
func (w *writer) afterCommit() {
	if w.cp.almost.Swap(false) {
		left, err := checkpoint(w.c)
		if err != nil {
			w.s.log.Warn("checkpoint did not work and is tried again later", zap.Error(err))
			return
		}
		w.frames = left
	}
	if w.frames*w.s.pageBytes >= w.s.opts.WALBytes/2 && !w.cp.busy.Load() {
		w.cp.wake()
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
