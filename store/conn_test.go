package store

import (
	"database/sql/driver"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestConn_Query_NestedWithTheSameText(t *testing.T) {
	c, err := openConn(filepath.Join(t.TempDir(), "file.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.script("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES(1), (2), (3)"); err != nil {
		t.Fatal(err)
	}
	const numbers = "SELECT n FROM t ORDER BY n"
	var seen []int64
	var inner error
	if err := c.query(numbers, func(v []driver.Value) (bool, error) {
		seen = append(seen, asInt(v[0]))
		if len(seen) == 2 {
			_, inner = c.queryInt(numbers)
		}
		if n, err := c.queryInt("SELECT max(n) FROM t"); err != nil || n != 3 {
			t.Errorf("another query inside: %d, %v", n, err)
		}
		return len(seen) < 10, nil
	}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(inner, errStatementBusy) || !strings.Contains(inner.Error(), numbers) {
		t.Errorf("the same query inside: %v", inner)
	}
	if len(seen) != 3 || seen[2] != 3 {
		t.Errorf("the outer query gave %v, want 1 to 3", seen)
	}
	if n, err := c.queryInt(numbers); err != nil || n != 1 {
		t.Errorf("the query afterwards: %d, %v", n, err)
	}
}
