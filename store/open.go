package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"
)

// Open opens the store file at o.Path, making it if it is not there, and checks it. A damaged,
// foreign or newer file is refused with ErrDamaged, ErrForeign or ErrNewer and left as it is.
// Writes work from now on; Run does the background work: leases expire and compaction frees space
// only while it runs.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	s := &Store{
		opts:    o,
		log:     o.Logger,
		closed:  make(chan struct{}),
		metrics: newMetrics(),
	}
	var err error
	if s.lock, err = lockFile(lockPath(o.Path)); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	wc, err := s.openFile(ctx)
	if err != nil {
		return err
	}
	undo := []func() error{wc.close}
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	meta, err := readMeta(wc)
	if err != nil {
		return fmt.Errorf("read store's own table: %w", fault(err))
	}
	s.clusterID, s.memberID = uint64(meta[metaCluster]), uint64(meta[metaMember])
	if err := s.loadRevisions(wc, meta); err != nil {
		return err
	}
	keys, err := loadKeyCounts(ctx, wc, meta[metaCounted])
	if err != nil {
		return err
	}
	keys.rev, keys.recentFrom = s.Revision(), s.Revision()
	lessor, err := loadLessor(wc)
	if err != nil {
		return err
	}
	values := newValueCache(s.opts.ValueCacheBytes)
	s.reads = &readers{
		conns:  make(chan *conn, s.opts.Readers),
		closed: s.closed,
		revs:   &s.revs,
		keys:   keys,
		values: values,
	}
	for range s.opts.Readers {
		rc, err := openConn(s.opts.Path, pragmas(s.opts, false)...)
		if err != nil {
			return fmt.Errorf("open store for reading: %w", fault(err))
		}
		undo = append(undo, rc.close)
		s.reads.conns <- rc
	}
	cc, err := openConn(s.opts.Path, pragmas(s.opts, true)...)
	if err != nil {
		return fmt.Errorf("open store for checkpoints: %w", fault(err))
	}
	undo = append(undo, cc.close)
	if err := fillLog(s.opts.Path, s.opts.WALBytes); err != nil {
		s.log.Warn("log cannot be filled in advance, so commits are slower", zap.Error(err))
	}
	pageBytes, err := wc.queryInt("PRAGMA page_size")
	if err != nil {
		return fmt.Errorf("read page size: %w", fault(err))
	}
	s.pageBytes = pageBytes
	journal, err := openJournal(s.opts, wc, &s.revs)
	if err != nil {
		return err
	}
	undo = append(undo, journal.wal.f.Close)
	journal.metrics, journal.alarm, journal.pageBytes = s.metrics, &s.alarm, pageBytes
	cp, err := openCheckpointer(s.opts, cc, journal.wal, pageBytes)
	if err != nil {
		return err
	}
	cp.metrics = s.metrics
	s.assemble(journal, cp, lessor, keys, values, meta[metaSwept])
	s.writes.start()
	s.log.Info("store open", zap.String("path", s.opts.Path), zap.Int64("revision", s.Revision()),
		zap.Int64("compacted", s.revs.compacted.Load()), zap.String("durability", string(s.opts.Durability)))
	return nil
}

// openFile opens the store file for writing. It makes a new one, or checks and migrates the old
// one.
func (s *Store) openFile(ctx context.Context) (_ *conn, err error) {
	empty, err := prepareFile(s.opts.Path)
	if err != nil {
		return nil, err
	}
	// Old versions shared the index of the log with other processes, in a file.
	if err := os.Remove(s.opts.Path + "-shm"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove index of the log: %w", err)
	}
	settings := pragmas(s.opts, true)
	if empty {
		// Only for a new file, and before anything else: on one that has these settings they would
		// be a write.
		settings = append([]string{fmt.Sprintf("page_size = %d", s.opts.PageBytes), "auto_vacuum = INCREMENTAL"},
			settings...)
	}
	c, err := openConn(s.opts.Path, settings...)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", fault(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	fresh, err := isEmpty(c)
	if err != nil {
		return nil, fmt.Errorf("look into store: %w", fault(err))
	}
	if fresh {
		if err := createSchema(c); err != nil {
			return nil, fmt.Errorf("create store: %w", fault(err))
		}
		if err := syncDir(filepath.Dir(s.opts.Path)); err != nil {
			return nil, err
		}
	} else {
		size, err := s.fileBytes()
		if err != nil {
			return nil, err
		}
		if err := checkStore(ctx, c, !s.opts.SkipCheck && size <= deepCheckBytes); err != nil {
			return nil, fmt.Errorf("%s: %w", s.opts.Path, err)
		}
	}
	return c, migrate(c)
}

// assemble makes the parts that share the open file. Nothing can fail here.
func (s *Store) assemble(j *journal, cp *checkpointer, le *lessor, keys *keyCounts, values *valueCache, swept int64) {
	hub := newHub(s.opts, s.metrics, s.Revision())
	s.writes = &writer{
		log:       s.log,
		metrics:   s.metrics,
		slowAfter: s.opts.SlowAfter,
		journal:   j,
		cp:        cp,
		lessor:    le,
		keys:      keys,
		values:    values,
		revs:      &s.revs,
		hub:       hub,
	}
	s.reads.writes = s.writes
	s.watches = &watches{
		member:        s.member,
		hub:           hub,
		reads:         s.reads,
		revs:          &s.revs,
		metrics:       s.metrics,
		progressEvery: s.opts.ProgressInterval,
		maxMessage:    s.opts.MaxRequestBytes + grpcOverhead,
		closed:        s.closed,
	}
	s.leases = &leases{
		member:  s.member,
		lessor:  le,
		reads:   s.reads,
		writes:  s.writes,
		revs:    &s.revs,
		metrics: s.metrics,
		log:     s.log,
	}
	s.compactor = &compactor{
		log:       s.log,
		metrics:   s.metrics,
		revs:      &s.revs,
		reads:     s.reads,
		writes:    s.writes,
		keys:      keys,
		pageBytes: j.pageBytes,
		closed:    s.closed,
		woken:     make(chan struct{}, 1),
		swept:     swept,
		moved:     make(chan struct{}),
	}
	s.snapshots = &snapshots{
		member: s.member,
		log:    s.log,
		revs:   &s.revs,
		tasks:  &s.tasks,
		path:   s.opts.Path,
		dir:    s.opts.SnapshotDir,
		every:  s.opts.SnapshotEvery,
		keep:   s.opts.SnapshotKeep,
	}
}

// loadRevisions reads where the store goes on.
func (s *Store) loadRevisions(c *conn, meta map[string]int64) error {
	newest, err := c.queryInt("SELECT max(id) FROM log")
	if err != nil {
		return fmt.Errorf("read newest revision: %w", fault(err))
	}
	s.revs.floor = meta[metaFloor]
	if err := s.skipLost(c, meta, revOf(newest)); err != nil {
		return err
	}
	s.revs.published.Store(s.revs.of(newest))
	s.revs.compacted.Store(meta[metaCompacted])
	return nil
}

// deepCheckBytes is up to which size all pages are checked at start; that takes about a second a
// gigabyte. Of larger files, pages and rows are checked as they are read.
const deepCheckBytes = 256 << 20

// skipLost moves the revision past everything that may have been shown before a power cut and was
// lost by it.
func (s *Store) skipLost(c *conn, meta map[string]int64, newest int64) error {
	const lost = 1_000_000 // more than can be written between two write-backs of the kernel
	mark := int64(allSynced)
	if s.opts.Durability == DurabilityRelaxed {
		mark = noneSynced
	}
	switch meta[metaUnsynced] {
	case noneSynced:
		s.revs.floor = max(s.revs.floor, newest) + lost
	case deferredUnsynced:
		s.revs.floor = max(s.revs.floor, newest) + deferredSkip
	}
	if meta[metaUnsynced] == mark && s.revs.floor == meta[metaFloor] {
		return nil
	}
	if err := c.script("PRAGMA synchronous = FULL; BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin marking durability: %w", fault(err))
	}
	if err := setMeta(c, metaFloor, s.revs.floor); err != nil {
		return fmt.Errorf("write revision floor: %w", fault(err))
	}
	if err := setMeta(c, metaUnsynced, mark); err != nil {
		return fmt.Errorf("write durability mark: %w", fault(err))
	}
	if err := c.script("COMMIT"); err != nil {
		return fmt.Errorf("commit durability mark: %w", fault(err))
	}
	return c.script("PRAGMA " + synchronous(s.opts))
}

func synchronous(o Options) string {
	if o.Durability == DurabilityRelaxed {
		// The log is synced before it is copied back, and the file after: what is lost is the end
		// of the log.
		return "synchronous = NORMAL"
	}
	return "synchronous = FULL"
}

func pragmas(o Options, writer bool) []string {
	p := []string{
		"journal_mode = WAL", synchronous(o),
		fmt.Sprintf("cache_size = -%d", o.CacheBytes>>10),
		// Checkpoints are ours to start, see checkpointer.
		"wal_autocheckpoint = 0", "temp_store = MEMORY", "cell_size_check = ON", "secure_delete = OFF",
	}
	if !writer {
		p = append(p, "query_only = ON")
	}
	return p
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, lockFault(err)), f.Close())
	}
	return f, nil
}

// lockFault names the one error of flock that means that another process has the lock.
func lockFault(err error) error {
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open folder of store: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync folder of store: %w", err), d.Close())
	}
	return d.Close()
}
