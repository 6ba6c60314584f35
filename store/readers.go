package store

import (
	"context"
	"database/sql/driver"
	"errors"
)

// readers are the connections for reading, each for one reader at a time.
type readers struct {
	conns  chan *conn
	closed <-chan struct{} // when the store closes
	revs   *revisions
	keys   *keyCounts
	values *valueCache
	writes *writer // for what reads must see of deferred writes
}

// prepare makes sure that a read of r will see all acknowledged writes, and returns the revision
// that it is at least of.
func (s *readers) prepare(ctx context.Context, r span) (top int64, err error) {
	deferred, top := s.writes.journal.covers(r)
	if deferred {
		err = s.writes.flush(ctx)
	}
	return top, err
}

func (s *readers) put(c *conn) { s.conns <- c }

// reader takes a read connection.
func (s *readers) take(ctx context.Context) (*conn, error) {
	select {
	case c := <-s.conns:
		select {
		case <-s.closed:
			s.conns <- c
			return nil, ErrClosed
		default:
		}
		return c, nil
	default:
	}
	select {
	case c := <-s.conns:
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
func (s *readers) view(ctx context.Context, fn func(sn *snap) error) (err error) {
	return s.viewOf(ctx, everything, fn)
}

// viewOf runs fn on a snapshot in which only the keys in r may be looked at.
func (s *readers) viewOf(ctx context.Context, r span, fn func(sn *snap) error) (err error) {
	top, err := s.prepare(ctx, r)
	if err != nil {
		return err
	}
	c, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer s.put(c)
	return s.viewOn(ctx, c, top, fn)
}

func (s *readers) viewOn(ctx context.Context, c *conn, top int64, fn func(sn *snap) error) (err error) {
	if err := c.exec("BEGIN"); err != nil {
		return fault(err)
	}
	defer func() {
		// A fault may have rolled the transaction back. If not, the connection must not go back
		// with it open.
		if cerr := c.exec("COMMIT"); cerr != nil && !c.c.AutoCommit() {
			err = errors.Join(err, fault(cerr), c.exec("ROLLBACK"))
		}
	}()
	newest, err := c.queryInt("SELECT max(id) FROM log")
	if err != nil {
		return fault(err)
	}
	// Loaded after the snapshot was taken: rows are removed only after this number has moved past
	// them.
	compacted := s.revs.compacted.Load()
	sn := &snap{
		c:         c,
		rev:       max(s.revs.of(newest), top),
		compacted: compacted,
		keys:      s.keys,
		values:    s.values,
		keep:      true,
		ctx:       ctx,
	}
	return fault(fn(sn))
}

// count answers the single number of a query on its own connection slot.
func (s *readers) count(ctx context.Context, sql string, args ...driver.Value) (n int64, err error) {
	c, err := s.take(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { s.put(c) }()
	n, err = c.queryInt(sql, args...)
	return n, fault(err)
}
