package store

import (
	"container/heap"
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/retry"
)

const (
	// maxLeaseTTL and minLeaseTTL, in seconds, are etcd's with its default settings.
	maxLeaseTTL = 9_000_000_000
	minLeaseTTL = 2
)

// lease is a lease in memory. Its deadline is a reading of the monotonic clock, so setting the wall
// clock expires nothing. The file holds the seconds left, so a restart expires nothing either.
type lease struct {
	id, ttl  int64
	deadline time.Time
	saved    int64 // seconds left according to the file
	pos      int   // in the heap
}

// lessor tracks when leases expire. The keys attached to a lease are in the file only.
type lessor struct {
	mu     sync.Mutex
	leases map[int64]*lease
	queue  leaseQueue
	// woken has a value when the next deadline may be earlier than before.
	woken     chan struct{}
	lastSaved time.Time
}

type leaseQueue []*lease

func (q leaseQueue) Len() int           { return len(q) }
func (q leaseQueue) Less(i, j int) bool { return q[i].deadline.Before(q[j].deadline) }
func (q leaseQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}
func (q *leaseQueue) Push(x any) {
	l := x.(*lease)
	l.pos = len(*q)
	*q = append(*q, l)
}
func (q *leaseQueue) Pop() any {
	old := *q
	l := old[len(old)-1]
	*q = old[:len(old)-1]
	return l
}

func loadLessor(c *conn) (*lessor, error) {
	le := &lessor{leases: map[int64]*lease{}, woken: make(chan struct{}, 1), lastSaved: time.Now()}
	err := c.query("SELECT id, ttl, remaining FROM lease", func(v []driver.Value) (bool, error) {
		le.insert(asInt(v[0]), asInt(v[1]), asInt(v[2]))
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", fault(err))
	}
	return le, nil
}

func after(seconds int64) time.Time {
	// A time.Duration ends at 292 years; a lease may be longer.
	return time.Now().Add(time.Duration(min(seconds, 9_000_000_000)) * time.Second)
}

// insert needs le.mu, or le to be new.
func (le *lessor) insert(id, ttl, remaining int64) {
	l := &lease{
		id:       id,
		ttl:      ttl,
		deadline: after(remaining),
		saved:    remaining,
	}
	le.leases[id] = l
	heap.Push(&le.queue, l)
	if l.pos == 0 {
		le.wake()
	}
}

func (le *lessor) wake() {
	select {
	case le.woken <- struct{}{}:
	default:
	}
}

func (le *lessor) add(id, ttl int64) {
	le.mu.Lock()
	defer le.mu.Unlock()
	le.insert(id, ttl, ttl)
}

func (le *lessor) remove(id int64) {
	le.mu.Lock()
	defer le.mu.Unlock()
	if l, ok := le.leases[id]; ok {
		delete(le.leases, id)
		heap.Remove(&le.queue, l.pos)
	}
}

func (le *lessor) known(id int64) bool {
	le.mu.Lock()
	defer le.mu.Unlock()
	_, ok := le.leases[id]
	return ok
}

// expired reports whether a lease has expired. A renewal while the revocation waited in the queue
// makes that false again.
func (le *lessor) expired(id int64) bool {
	le.mu.Lock()
	defer le.mu.Unlock()
	l, ok := le.leases[id]
	return ok && !l.deadline.After(time.Now())
}

// renew resets a lease to its whole TTL. stale reports that the file has fewer seconds than that.
func (le *lessor) renew(id int64) (ttl int64, stale bool, err error) {
	le.mu.Lock()
	defer le.mu.Unlock()
	l, ok := le.leases[id]
	if !ok || !l.deadline.After(time.Now()) {
		return 0, false, ErrLeaseNotFound
	}
	l.deadline = after(l.ttl)
	heap.Fix(&le.queue, l.pos)
	return l.ttl, l.saved < l.ttl, nil
}

func (le *lessor) setSaved(id, seconds int64) {
	le.mu.Lock()
	defer le.mu.Unlock()
	if l, ok := le.leases[id]; ok {
		l.saved = seconds
	}
}

// due returns the expired leases, or when the next one expires.
func (le *lessor) due(now time.Time) (ids []int64, next time.Time) {
	le.mu.Lock()
	defer le.mu.Unlock()
	for _, l := range le.queue {
		if !l.deadline.After(now) {
			ids = append(ids, l.id)
		}
	}
	if len(ids) == 0 && len(le.queue) > 0 {
		next = le.queue[0].deadline
	}
	return ids, next
}

// saveEvery bounds how much longer than its TTL a lease can live because of a crash.
const saveEvery = 5 * time.Minute

// stale returns the seconds left that the file should have by now, at most once every saveEvery.
// The writer asks when it commits anyway, so that saving costs no commit of its own.
func (le *lessor) stale(now time.Time) map[int64]int64 {
	le.mu.Lock()
	defer le.mu.Unlock()
	if len(le.leases) == 0 || now.Sub(le.lastSaved) < saveEvery {
		return nil
	}
	le.lastSaved = now
	return le.leftLocked(now)
}

func (le *lessor) leftLocked(now time.Time) map[int64]int64 {
	left := map[int64]int64{}
	for id, l := range le.leases {
		// Rounded up, as a lease must never expire early.
		if s := int64(l.deadline.Sub(now)/time.Second) + 1; s < l.saved {
			left[id] = max(s, 1)
		}
	}
	return left
}

// saveRemaining writes how long each lease has left, at close.
func (le *lessor) saveRemaining(c *conn) error {
	le.mu.Lock()
	left := le.leftLocked(time.Now())
	le.mu.Unlock()
	if len(left) == 0 {
		return nil
	}
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin saving leases: %w", fault(err))
	}
	for id, s := range left {
		if err := c.exec("UPDATE lease SET remaining = ?2 WHERE id = ?1", id, s); err != nil {
			return errors.Join(fmt.Errorf("save lease: %w", fault(err)), c.exec("ROLLBACK"))
		}
	}
	return fault(c.exec("COMMIT"))
}

// leases grants, renews and revokes leases.
type leases struct {
	member
	lessor  *lessor
	reads   *readers
	writes  *writer
	revs    *revisions
	metrics *metrics
	log     *zap.Logger
}

// expire revokes leases as they end. It sleeps until the next one does.
func (s *leases) expire(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	pauses := retry.Backoff{First: time.Second, Last: 10 * time.Second}
	var failures retry.Failures
	for {
		ids, next := s.lessor.due(time.Now())
		var failed error
		for _, id := range ids {
			err := s.revoke(ctx, id, true)
			if ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return nil
			}
			if err != nil && !errors.Is(err, ErrLeaseNotFound) {
				failed = fmt.Errorf("revoke expired lease: %w", err)
			}
		}
		switch {
		case failed != nil:
			// Most likely no space: the keys stay a little longer.
			pause := pauses.Next()
			if failures.News(failed) {
				s.log.Warn("expired leases keep their keys", zap.Error(failed), zap.Duration("retry in", pause))
			}
			next = time.Now().Add(pause)
		case len(ids) > 0:
			pauses.Reset()
			if failures.Recovered() {
				s.log.Info("expired leases are revoked again")
			}
		}
		if len(ids) > 0 && next.IsZero() {
			continue
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-due:
		case <-s.lessor.woken:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *leases) grant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	id, ttl := r.ID, max(r.TTL, minLeaseTTL)
	if ttl > maxLeaseTTL {
		return nil, ErrLeaseTTLTooLarge
	}
	for id == 0 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("choose lease id: %w", err)
		}
		id = int64(binary.LittleEndian.Uint64(b[:]) >> 1)
	}
	var rev int64
	err := s.writes.propose(ctx, 32, func(tx *writeTx) error {
		if tx.knowsLease(id) {
			return ErrLeaseExists
		}
		if err := tx.exec("INSERT INTO lease(id, ttl, remaining) VALUES(?1, ?2, ?2)", id, ttl); err != nil {
			return err
		}
		tx.noteLease(id, true)
		rev = tx.rev
		return nil
	}, func() { s.lessor.add(id, ttl) })
	if err != nil {
		return nil, err
	}
	s.metrics.leaseGranted.Inc()
	return &pb.LeaseGrantResponse{Header: s.header(rev), ID: id, TTL: ttl}, nil
}

// leaseKeys lists the keys on a lease, in order.
func (sn *snap) leaseKeys(id int64) ([][]byte, error) {
	var keys [][]byte
	err := sn.c.query(
		"SELECT l.key FROM log l JOIN cur c ON c.key = l.key AND c.id = l.id WHERE l.lease = ?1 AND l.lease <> 0 "+
			"ORDER BY l.key",
		func(v []driver.Value) (bool, error) {
			keys = append(keys, asBytes(v[0]))
			return true, nil
		}, id)
	return keys, err
}

// revoke ends a lease and deletes its keys in one revision. With onlyExpired a lease renewed
// meanwhile is let be.
func (s *leases) revoke(ctx context.Context, id int64, onlyExpired bool) error {
	gone := false
	return s.writes.propose(ctx, 32, func(tx *writeTx) error {
		gone = false
		if !tx.knowsLease(id) || onlyExpired && !s.lessor.expired(id) {
			return ErrLeaseNotFound
		}
		keys, err := tx.snap().leaseKeys(id)
		if err != nil {
			return err
		}
		for _, key := range keys {
			old, ok, err := tx.snap().newest(key)
			if err != nil {
				return err
			}
			if !ok || old.dead() {
				continue
			}
			if err := tx.delete(old); err != nil {
				return err
			}
		}
		if err := tx.exec("DELETE FROM lease WHERE id = ?1", id); err != nil {
			return err
		}
		tx.noteLease(id, false)
		gone = true
		return nil
	}, func() {
		if gone {
			s.lessor.remove(id)
			s.metrics.leaseRevoked.Inc()
		}
	})
}

// keepAlive renews a lease and gives its whole time, or 0 when there is no such lease.
func (s *leases) keepAlive(ctx context.Context, id int64) (int64, error) {
	ttl, stale, err := s.lessor.renew(id)
	if errors.Is(err, ErrLeaseNotFound) {
		return 0, nil
	}
	if err != nil || !stale {
		return ttl, err
	}
	// Without this a crash would give the lease the shorter time saved before, and it would end
	// early.
	err = s.writes.propose(ctx, 32, func(tx *writeTx) error {
		return tx.exec("UPDATE lease SET remaining = ttl WHERE id = ?1", id)
	}, func() { s.lessor.setSaved(id, ttl) })
	return ttl, err
}

func (s *leases) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	resp := &pb.LeaseTimeToLiveResponse{Header: s.header(s.revs.published.Load()), ID: r.ID, TTL: -1}
	s.lessor.mu.Lock()
	l, ok := s.lessor.leases[r.ID]
	if ok {
		resp.TTL, resp.GrantedTTL = int64(time.Until(l.deadline)/time.Second), l.ttl
	}
	s.lessor.mu.Unlock()
	if !ok || !r.Keys {
		return resp, nil
	}
	err := s.reads.view(ctx, func(sn *snap) (err error) {
		resp.Keys, err = sn.leaseKeys(r.ID)
		return err
	})
	return resp, err
}

func (s *leases) ids() []int64 {
	s.lessor.mu.Lock()
	defer s.lessor.mu.Unlock()
	all := slices.Clone(s.lessor.queue)
	slices.SortFunc(all, func(a, b *lease) int { return a.deadline.Compare(b.deadline) })
	ids := make([]int64, len(all))
	for i, l := range all {
		ids[i] = l.id
	}
	return ids
}
