package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Store is an open store. Its methods are safe for concurrent use.
//
// Order of locks: hub.mu before watchStream.mu; lessor.mu is taken alone.
type Store struct {
	opts Options
	log  *zap.Logger
	lock *os.File

	clusterID, memberID uint64
	floor               int64 // least revision of the store, fixed while it is open
	pageBytes           int64

	w         *writer
	readers   chan *conn
	hub       *hub
	lessor    *lessor
	keyCounts *keyCounts
	values    *valueCache
	metrics   *metrics
	rev       atomic.Int64 // newest published revision
	compact   atomic.Int64 // newest compaction asked for and durable
	sweep     *compactor
	alarm     atomic.Bool // the last write found no room
	damage    damageLog
	hashKVMu  sync.Mutex // one hash over the whole file at a time

	tasks     tasks
	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// Open opens the store file at o.Path, making it if it is not there, and checks it. A damaged, foreign or newer file
// is refused with ErrDamaged, ErrForeign or ErrNewer and left as it is. Writes work from now on; Run does the
// background work: leases expire and compaction frees space only while it runs.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	s := &Store{opts: o, log: o.Logger, closed: make(chan struct{}), metrics: newMetrics()}
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
	empty, err := prepareFile(s.opts.Path)
	if err != nil {
		return err
	}
	// The index that versions before shared with other processes.
	if err := os.Remove(s.opts.Path + "-shm"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove index of the log: %w", err)
	}
	pragmas := s.pragmas(true)
	if empty {
		// Only before anything else; said again to a file that has them they would be a write.
		pragmas = append([]string{fmt.Sprintf("page_size = %d", s.opts.PageBytes), "auto_vacuum = INCREMENTAL"}, pragmas...)
	}
	wc, err := openConn(s.opts.Path, pragmas...)
	if err != nil {
		return fmt.Errorf("open store: %w", fault(err))
	}
	undo := []func() error{wc.close}
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				err = errors.Join(err, undo[i]())
			}
		}
	}()
	fresh, err := isEmpty(wc)
	if err != nil {
		return fmt.Errorf("look into store: %w", fault(err))
	}
	if fresh {
		if err := createSchema(wc); err != nil {
			return fmt.Errorf("create store: %w", fault(err))
		}
		if err := syncDir(filepath.Dir(s.opts.Path)); err != nil {
			return err
		}
	} else {
		size, err := s.fileBytes()
		if err != nil {
			return err
		}
		if err := checkStore(ctx, wc, !s.opts.SkipCheck && size <= deepCheckBytes); err != nil {
			return fmt.Errorf("%s: %w", s.opts.Path, err)
		}
	}
	if err := migrate(wc); err != nil {
		return err
	}
	meta, err := readMeta(wc)
	if err != nil {
		return fmt.Errorf("read store's own table: %w", fault(err))
	}
	s.clusterID, s.memberID = uint64(meta[metaCluster]), uint64(meta[metaMember])
	s.floor = meta[metaFloor]
	if s.pageBytes, err = wc.queryInt("PRAGMA page_size"); err != nil {
		return fmt.Errorf("read page size: %w", fault(err))
	}
	newest, err := wc.queryInt("SELECT max(id) FROM log")
	if err != nil {
		return fmt.Errorf("read newest revision: %w", fault(err))
	}
	if err := s.skipLost(wc, meta, revOf(newest)); err != nil {
		return err
	}
	s.rev.Store(max(s.floor, revOf(newest)))
	s.compact.Store(meta[metaCompacted])
	s.hub = newHub(s)
	if s.keyCounts, err = loadKeyCounts(ctx, wc, meta[metaCounted]); err != nil {
		return err
	}
	s.keyCounts.rev, s.keyCounts.recentFrom = s.rev.Load(), s.rev.Load()
	s.values = newValueCache(s.opts.ValueCacheBytes)
	s.sweep = newCompactor(s, meta[metaSwept])
	if s.lessor, err = loadLessor(wc); err != nil {
		return err
	}
	s.readers = make(chan *conn, s.opts.Readers)
	for range s.opts.Readers {
		rc, err := openConn(s.opts.Path, s.pragmas(false)...)
		if err != nil {
			return fmt.Errorf("open store for reading: %w", fault(err))
		}
		undo = append(undo, rc.close)
		s.readers <- rc
	}
	cc, err := openConn(s.opts.Path, s.pragmas(true)...)
	if err != nil {
		return fmt.Errorf("open store for checkpoints: %w", fault(err))
	}
	if err := fillLog(s.opts.Path, s.opts.WALBytes); err != nil {
		s.log.Warn("log could not be made ready for fast commits", zap.Error(err))
	}
	undo = append(undo, cc.close)
	if s.w, err = newWriter(s, wc, cc); err != nil {
		return err
	}
	s.w.start()
	s.log.Info("store open", zap.String("path", s.opts.Path), zap.Int64("revision", s.rev.Load()),
		zap.Int64("compacted", s.compact.Load()), zap.String("durability", string(s.opts.Durability)))
	return nil
}

// deepCheckBytes is up to which size all pages are checked at start; that takes about a second a gigabyte. Of larger
// files, pages and rows are checked as they are read.
const deepCheckBytes = 256 << 20

// skipLost deltas the revision past everything that may have been shown before a power cut and was lost by it.
func (s *Store) skipLost(c *conn, meta map[string]int64, newest int64) error {
	const lost = 1_000_000 // more than can be written between two write-backs of the kernel
	mark := int64(allSynced)
	if s.opts.Durability == DurabilityRelaxed {
		mark = noneSynced
	}
	switch meta[metaUnsynced] {
	case noneSynced:
		s.floor = max(s.floor, newest) + lost
	case deferredUnsynced:
		s.floor = max(s.floor, newest) + deferredSkip
	}
	if meta[metaUnsynced] == mark && s.floor == meta[metaFloor] {
		return nil
	}
	if err := c.script("PRAGMA synchronous = FULL; BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin marking durability: %w", fault(err))
	}
	if err := setMeta(c, metaFloor, s.floor); err != nil {
		return fmt.Errorf("write revision floor: %w", fault(err))
	}
	if err := setMeta(c, metaUnsynced, mark); err != nil {
		return fmt.Errorf("write durability mark: %w", fault(err))
	}
	if err := c.script("COMMIT"); err != nil {
		return fmt.Errorf("commit durability mark: %w", fault(err))
	}
	return c.script("PRAGMA " + s.synchronous())
}

func (s *Store) synchronous() string {
	if s.opts.Durability == DurabilityRelaxed {
		// The log is synced before it is copied back, and the file after: what is lost is the end of the log.
		return "synchronous = NORMAL"
	}
	return "synchronous = FULL"
}

func (s *Store) pragmas(writer bool) []string {
	p := []string{
		"journal_mode = WAL", s.synchronous(),
		fmt.Sprintf("cache_size = -%d", s.opts.CacheBytes>>10),
		// Checkpoints are ours to start, see checkpointer.
		"wal_autocheckpoint = 0", "temp_store = MEMORY", "cell_size_check = ON", "secure_delete = OFF",
	}
	if !writer {
		p = append(p, "query_only = ON")
	}
	return p
}

// Run does the background work until ctx ends: it expires leases, sweeps away what compaction made superfluous and
// takes automatic snapshots. It returns nil when ctx ends or the store closes. When there is nothing to do it sleeps.
func (s *Store) Run(ctx context.Context) error {
	ctx, end, err := s.tasks.begin(ctx)
	if err != nil {
		return nil // closed before it ran
	}
	defer end()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.expireLeases(ctx) })
	g.Go(func() error { return s.sweep.run(ctx) })
	g.Go(func() error {
		s.serveCopyRequests(ctx)
		return nil
	})
	if s.opts.SnapshotEvery > 0 {
		g.Go(func() error { return s.autoSnapshots(ctx) })
	}
	return g.Wait()
}

// Close ends Run, all watches and copies of the file, waits for reads and writes in progress, copies the write-ahead log
// into the file and closes it. A second call returns what the first did.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		s.hub.close()
		s.tasks.close()
		var errs []error
		errs = append(errs, s.w.close())
		for range s.opts.Readers {
			c := <-s.readers
			errs = append(errs, c.close())
		}
		errs = append(errs, s.w.finish(), s.lock.Close())
		s.closeErr = errors.Join(errs...)
		s.log.Info("store closed", zap.Int64("revision", s.rev.Load()), zap.Error(s.closeErr))
	})
	return s.closeErr
}

// Revision is the newest revision that was published.
func (s *Store) Revision() int64 { return s.rev.Load() }

func (s *Store) header(rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: s.clusterID, MemberId: s.memberID, RaftTerm: raftTerm, Revision: rev}
}

// raftTerm is what answers carry as the term; there is one member and never another election.
const raftTerm = 2

// reader takes a read connection.
func (s *Store) reader(ctx context.Context) (*conn, error) {
	select {
	case c := <-s.readers:
		select {
		case <-s.closed:
			s.readers <- c
			return nil, ErrClosed
		default:
		}
		return c, nil
	default:
	}
	select {
	case c := <-s.readers:
		return c, nil
	case <-s.closed:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// everything is every key there can be.
var everything = span{end: []byte{}}

// view runs fn on a snapshot of the store.
func (s *Store) view(ctx context.Context, fn func(sn *snap) error) (err error) {
	return s.viewOf(ctx, everything, fn)
}

// viewOf runs fn on a snapshot in which only the keys in r may be looked at.
func (s *Store) viewOf(ctx context.Context, r span, fn func(sn *snap) error) (err error) {
	top, err := s.settle(ctx, r)
	if err != nil {
		return err
	}
	c, err := s.reader(ctx)
	if err != nil {
		return err
	}
	defer func() { s.readers <- c }()
	return s.viewOn(ctx, c, top, fn)
}

func (s *Store) viewOn(ctx context.Context, c *conn, top int64, fn func(sn *snap) error) (err error) {
	if err := c.exec("BEGIN"); err != nil {
		return fault(err)
	}
	defer func() {
		// A fault may have rolled the transaction back. If not, the connection must not go back with it open.
		if cerr := c.exec("COMMIT"); cerr != nil && !c.c.AutoCommit() {
			err = errors.Join(err, fault(cerr), c.exec("ROLLBACK"))
		}
	}()
	newest, err := c.queryInt("SELECT max(id) FROM log")
	if err != nil {
		return fault(err)
	}
	// Read after the snapshot was taken: rows go away only after this number has moved past them.
	return fault(fn(&snap{c: c, rev: max(s.floor, revOf(newest), top), compacted: s.compact.Load(), keyCounts: s.keyCounts, values: s.values,
		keep: true, ctx: ctx}))
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

// count answers the single number of a query on its own connection slot.
func (s *Store) count(ctx context.Context, sql string, args ...driver.Value) (n int64, err error) {
	c, err := s.reader(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { s.readers <- c }()
	n, err = c.queryInt(sql, args...)
	return n, fault(err)
}
