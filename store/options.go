package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Durability determines when a write is safe on disk.
type Durability string

const (
	// DurabilityFull has a write on disk before it is acknowledged. It is the default.
	DurabilityFull Durability = "full"
	// DurabilityRelaxed lets the kernel write back on its own: a power cut can lose the last
	// seconds of acknowledged writes, never tear the file, and never give a revision a second
	// meaning (the next start skips ahead).
	DurabilityRelaxed Durability = "relaxed"
)

// Options configures a Store. Zero values are good defaults, except for Path.
type Options struct {
	// Path is the SQLite file. Its folder must exist.
	Path string
	// Logger gets the store's messages; nil means none.
	Logger *zap.Logger
	// Durability is when a write counts as safe; empty means DurabilityFull.
	Durability Durability
	// DeferredKeys are prefixes of keys whose puts are acknowledged before they are on disk, if
	// nothing else is written at the time: they stay in memory for a minute at most and are written
	// together with whatever comes next. They are meant for heartbeats. A crash can lose the last
	// ones, but no revision gets a second meaning. Empty means none.
	DeferredKeys []string
	// Readers is how many reads run at once, each with its own connection and cache. 0 means 4.
	Readers int
	// CacheBytes is each connection's page cache. 0 means 1 MiB.
	CacheBytes int64
	// ValueCacheBytes is how much of the newest and last read values stays in memory, ready to be
	// given out. 0 means 8 MiB.
	ValueCacheBytes int64
	// PageBytes is the size of a page of a new file, a power of two from 512 to 65536. A small
	// write writes two pages whole. 0 means 1024.
	PageBytes int64
	// MaxRequestBytes is the largest write request. 0 means 1.5 MiB, as in etcd.
	MaxRequestBytes int
	// MaxTxnOps is how many operations one transaction may hold on a level. 0 means 128, as in
	// etcd.
	MaxTxnOps int
	// MaxBytes is the size of the file above which writes that add data are refused with the
	// no-space error. 0 means no limit but the disk's.
	MaxBytes int64
	// WALBytes is the size of the write-ahead log at which it is copied back into the file. 0 means
	// 4 MiB.
	WALBytes int64
	// WatchBufferEvents is how many events wait in memory for one slow watcher before it is fed
	// from the file instead. 0 means 4096.
	WatchBufferEvents int
	// WatchBufferBytes is the same limit by size. 0 means 4 MiB.
	WatchBufferBytes int
	// ProgressInterval is how often an idle watcher that asked for it is told the revision. 0 means
	// 10 minutes.
	ProgressInterval time.Duration
	// SlowAfter is when an operation is logged as slow. 0 means 500 ms.
	SlowAfter time.Duration
	// SnapshotDir, with SnapshotEvery, is where automatic snapshots go.
	SnapshotDir string
	// SnapshotEvery is the time between automatic snapshots; none is taken when nothing changed. 0
	// means never.
	SnapshotEvery time.Duration
	// SnapshotKeep is how many automatic snapshots stay. 0 means 5.
	SnapshotKeep int
	// SkipCheck leaves out the quick check of the whole file at start; single pages are still
	// checked when read.
	SkipCheck bool
}

func (o Options) validate() error {
	var errs []error
	if o.Path == "" {
		errs = append(errs, errors.New("store path is empty"))
	}
	switch o.Durability {
	case "", DurabilityFull, DurabilityRelaxed:
	default:
		errs = append(errs, fmt.Errorf("unknown durability %q (want full or relaxed)", o.Durability))
	}
	if slices.Contains(o.DeferredKeys, "") {
		errs = append(errs, errors.New("an empty prefix would defer all writes"))
	}
	if p := o.PageBytes; p != 0 && (p < 512 || p > 65536 || p&(p-1) != 0) {
		errs = append(errs, fmt.Errorf("page size %d is no power of two from 512 to 65536", p))
	}
	if o.SnapshotEvery > 0 && o.SnapshotDir == "" {
		errs = append(errs, errors.New("automatic snapshots need a folder"))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	def := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def64 := func(n *int64, v int64) {
		if *n == 0 {
			*n = v
		}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Durability == "" {
		o.Durability = DurabilityFull
	}
	def(&o.Readers, 4)
	def64(&o.CacheBytes, 1<<20)
	def64(&o.ValueCacheBytes, 8<<20)
	def64(&o.PageBytes, 1024)
	def(&o.MaxRequestBytes, 3<<19)
	def(&o.MaxTxnOps, 128)
	def64(&o.WALBytes, 4<<20)
	def(&o.WatchBufferEvents, 4096)
	def(&o.WatchBufferBytes, 4<<20)
	def(&o.SnapshotKeep, 5)
	if o.ProgressInterval == 0 {
		o.ProgressInterval = 10 * time.Minute
	}
	if o.SlowAfter == 0 {
		o.SlowAfter = 500 * time.Millisecond
	}
	return o
}
