package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/mattn/go-sqlite3"
)

// conn is one SQLite connection with its prepared statements. It goes past database/sql on purpose:
// the pool there costs more than the statements, and a snapshot needs one connection held for
// several statements. A conn is used by one goroutine at a time.
type conn struct {
	c     *sqlite3.SQLiteConn
	stmts map[string]*stmt
	dest  []driver.Value
}

// stmt is a prepared statement. SQLite gives it one cursor: running it again moves that cursor back
// to the start, also under a caller that is still reading from it.
type stmt struct {
	s    *sqlite3.SQLiteStmt
	busy bool // a query reads from it
}

// errStatementBusy means that a row callback runs the query it is called for. Without this error
// the outer query would start over, silently.
var errStatementBusy = errors.New("statement is already running on this connection")

// dsn names the file for the driver; every other setting is a pragma, so that there is one place to
// look. Other processes are kept out, and with that the index of the write-ahead log stays in
// memory: shared with them it would be a mapped file, of which commits dirty up to six blocks.
func dsn(path string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
	u.RawQuery = url.Values{"_busy_timeout": {"10000"}, "vfs": {"unix-excl"}}.Encode()
	return u.String()
}

func openConn(path string, pragmas ...string) (*conn, error) {
	dc, err := (&sqlite3.SQLiteDriver{}).Open(dsn(path))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	c := &conn{c: dc.(*sqlite3.SQLiteConn), stmts: map[string]*stmt{}, dest: make([]driver.Value, 8)}
	for _, p := range pragmas {
		if err := c.script("PRAGMA " + p); err != nil {
			c.close()
			return nil, fmt.Errorf("set pragma %s on %s: %w", p, path, err)
		}
	}
	return c, nil
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.s.Close())
	}
	c.stmts = map[string]*stmt{}
	return errors.Join(append(errs, c.c.Close())...)
}

// script runs statements without arguments and without keeping them prepared.
func (c *conn) script(sql string) error {
	_, err := c.c.Exec(sql, nil)
	return err
}

func (c *conn) stmt(sql string) (*stmt, error) {
	if s, ok := c.stmts[sql]; ok {
		if s.busy {
			return nil, fmt.Errorf("run %q: %w", sql, errStatementBusy)
		}
		return s, nil
	}
	ds, err := c.c.Prepare(sql)
	if err != nil {
		return nil, fmt.Errorf("prepare %q: %w", sql, err)
	}
	s := &stmt{s: ds.(*sqlite3.SQLiteStmt)}
	c.stmts[sql] = s
	return s, nil
}

func (c *conn) exec(sql string, args ...driver.Value) error {
	s, err := c.stmt(sql)
	if err != nil {
		return err
	}
	_, err = s.s.Exec(args)
	return err
}

// query runs sql and calls fn for each row until fn returns false. The values in row are only good
// during the call, except for blobs, which are fresh copies.
func (c *conn) query(sql string, fn func(row []driver.Value) (bool, error), args ...driver.Value) error {
	s, err := c.stmt(sql)
	if err != nil {
		return err
	}
	rows, err := s.s.Query(args)
	if err != nil {
		return err
	}
	return c.each(s, rows, fn)
}

// queryContext is query for statements that take long: it interrupts SQLite when ctx ends, and then
// returns ctx's error.
func (c *conn) queryContext(ctx context.Context, sql string, fn func(row []driver.Value) (bool, error),
	args ...driver.Value) error {
	s, err := c.stmt(sql)
	if err != nil {
		return err
	}
	named := make([]driver.NamedValue, len(args))
	for i, v := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	// Not ExecContext, which loses an interrupt that arrives just before SQLite's first step.
	rows, err := s.s.QueryContext(ctx, named)
	if err != nil {
		return err
	}
	return c.each(s, rows, fn)
}

func (c *conn) each(s *stmt, rows driver.Rows, fn func(row []driver.Value) (bool, error)) error {
	s.busy = true
	defer func() { s.busy = false }()
	n := len(rows.Columns())
	if n > len(c.dest) {
		c.dest = make([]driver.Value, n)
	}
	for {
		// fn may run another statement on this connection, so the buffer is used for one step only.
		dest := c.dest[:n]
		if err := rows.Next(dest); err != nil {
			cerr := rows.Close()
			if errors.Is(err, io.EOF) {
				return cerr
			}
			return err
		}
		more, err := fn(dest)
		if err != nil || !more {
			return errors.Join(err, rows.Close())
		}
	}
}

// queryInt returns the single integer of a query; NULL and no row are zero.
func (c *conn) queryInt(sql string, args ...driver.Value) (int64, error) {
	return c.queryIntContext(context.Background(), sql, args...)
}

func (c *conn) queryIntContext(ctx context.Context, sql string, args ...driver.Value) (int64, error) {
	var n int64
	first := func(row []driver.Value) (bool, error) {
		n = asInt(row[0])
		return false, nil
	}
	if ctx.Done() == nil {
		err := c.query(sql, first, args...)
		return n, err
	}
	err := c.queryContext(ctx, sql, first, args...)
	return n, err
}

func asInt(v driver.Value) int64 {
	n, _ := v.(int64)
	return n
}

func asText(v driver.Value) string {
	switch s := v.(type) {
	case string:
		return s
	case []byte:
		return string(s)
	}
	return ""
}

func asBytes(v driver.Value) []byte {
	b, _ := v.([]byte)
	return b
}

// blob binds bytes, with nil and empty as NULL: the row is smaller by nothing, but reading back
// gives nil as etcd does.
func blob(b []byte) driver.Value {
	if len(b) == 0 {
		return nil
	}
	return b
}
