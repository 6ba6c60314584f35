package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the checksum a row carries. SQLite checks the form of its pages, not their content; this
// finds a changed bit in a value when it is read.
func (r *row) sum() int64 {
	var head [40]byte
	for i, n := range []int64{r.id, r.prev, r.created, r.version, r.lease} {
		binary.LittleEndian.PutUint64(head[8*i:], uint64(n))
	}
	c := crc32.Update(0, castagnoli, head[:])
	c = crc32.Update(c, castagnoli, r.key)
	return int64(crc32.Update(c, castagnoli, r.value))
}

const fileMagic = "SQLite format 3\x00"

// prepareFile makes the file if there is none, and refuses one that is no database at all. It tells
// whether it is empty.
func prepareFile(path string) (empty bool, err error) {
	// Made here, so that it is never readable by others.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fmt.Errorf("open store file: %w", err)
	}
	defer f.Close()
	head := make([]byte, len(fileMagic))
	n, err := io.ReadFull(f, head)
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return true, nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return false, fmt.Errorf("read start of store file: %w", err)
	case !bytes.Equal(head[:n], []byte(fileMagic)):
		return false, fmt.Errorf("%s does not begin like a database: %w", path, ErrDamaged)
	}
	return false, nil
}

// isEmpty reports whether the file has no tables: it is new, or its first start ended before the
// first commit.
func isEmpty(c *conn) (bool, error) {
	n, err := c.queryInt("SELECT count(*) FROM sqlite_master")
	return n == 0, err
}

// checkStore checks that an open file is a store of ours and nothing else, and with deep that its
// pages are sound.
func checkStore(ctx context.Context, c *conn, deep bool) error {
	id, err := c.queryInt("PRAGMA application_id")
	if err != nil {
		return fmt.Errorf("check store: %w", fault(err))
	}
	if id != applicationID {
		return ErrForeign
	}
	v, err := c.queryInt("PRAGMA user_version")
	if err != nil {
		return fmt.Errorf("check store: %w", fault(err))
	}
	if v > schemaVersion {
		return fmt.Errorf("its format is %d, the newest known is %d: %w", v, schemaVersion, ErrNewer)
	}
	if v < 1 {
		return fmt.Errorf("its format is %d, the oldest is 1: %w", v, ErrDamaged)
	}
	if deep {
		if err := checkPages(ctx, c); err != nil {
			return err
		}
	}
	return checkSchema(c, v)
}

// checkPages lets SQLite look at every page.
func checkPages(ctx context.Context, c *conn) error {
	var bad string
	if err := c.queryContext(ctx, "PRAGMA quick_check(1)", func(v []driver.Value) (bool, error) {
		bad = asText(v[0])
		return false, nil
	}); err != nil {
		return fmt.Errorf("check pages of store: %w", fault(err))
	}
	if bad != "ok" {
		return fmt.Errorf("%s: %w", bad, ErrDamaged)
	}
	return nil
}

// checkSchema compares what a file of format v consists of with the schema of that format. SQLite
// runs a trigger with the store's own writes, and reads a view like a table: with one of them, or
// with other columns or constraints, a file is not what its rows say.
func checkSchema(c *conn, v int64) error {
	missing := schemaOf(v)
	var faults []string
	if err := c.query("SELECT type, name, sql FROM sqlite_master", func(row []driver.Value) (bool, error) {
		name, sql := asText(row[1]), asText(row[2])
		switch {
		case missing[name] == sql && sql != "":
			delete(missing, name)
		case strings.HasPrefix(name, "sqlite_stat"):
			// SQLite's own: somebody let it analyze the file, which changes none of its content.
		case missing[name] != "":
			faults = append(faults, fmt.Sprintf("its %s %s is not the store's", asText(row[0]), name))
			delete(missing, name)
		default:
			faults = append(faults, fmt.Sprintf("it has a foreign %s %s", asText(row[0]), name))
		}
		return true, nil
	}); err != nil {
		return fmt.Errorf("read schema of store: %w", fault(err))
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		faults = append(faults, "it has no "+name)
	}
	if len(faults) > 0 {
		return fmt.Errorf("%s: %w", strings.Join(faults, ", "), ErrDamaged)
	}
	return nil
}

// checkRows reads every row and compares its checksum, and that each key's newest version is there.
func checkRows(ctx context.Context, c *conn) error {
	if err := c.queryContext(ctx, "SELECT "+rowColumns+", l.key FROM log l ORDER BY l.id",
		func(v []driver.Value) (bool, error) {
			_, err := scanRow(asBytes(v[7]), v)
			return err == nil, err
		}); err != nil {
		return fault(err)
	}
	lost, err := c.queryIntContext(ctx,
		"SELECT count(*) FROM cur c LEFT JOIN log l ON l.id = c.id WHERE l.id IS NULL OR l.key <> c.key OR "+
			"(l.version = 0) <> c.dead")
	if err != nil {
		return fault(err)
	}
	if lost > 0 {
		return fmt.Errorf("%d keys without their newest version: %w", lost, ErrDamaged)
	}
	return checkKeyCounts(ctx, c)
}

// checkKeyCounts compares the saved counts with the keys. Files of format 1 have none until they
// are migrated.
func checkKeyCounts(ctx context.Context, c *conn) error {
	meta, err := readMeta(c)
	if err != nil {
		return fault(err)
	}
	saved, ok := meta[metaCounted]
	if !ok {
		return nil
	}
	t, err := loadKeyCounts(ctx, c, saved)
	if err != nil {
		return err
	}
	have := make([]int64, len(t.n))
	if err := c.queryContext(ctx, "SELECT key FROM cur WHERE dead = 0", func(v []driver.Value) (bool, error) {
		have[t.at(asBytes(v[0]))]++
		return true, nil
	}); err != nil {
		return fault(err)
	}
	if !slices.Equal(have, t.n) {
		return fmt.Errorf("the counts of keys do not agree with them: %w", ErrDamaged)
	}
	return nil
}

// migrations bring a file from one format to the next; entry i leads from format i+1. Each needs a
// test that opens a file of the old format.
var migrations = []func(c *conn) error{
	func(c *conn) error { // 1 to 2: the keyCounts
		if err := c.exec("CREATE TABLE tally(start BLOB PRIMARY KEY, n INTEGER) WITHOUT ROWID"); err != nil {
			return err
		}
		return buildKeyCounts(c)
	},
}

func migrate(c *conn) error {
	v, err := c.queryInt("PRAGMA user_version")
	if err != nil {
		return fmt.Errorf("read format of store: %w", fault(err))
	}
	for ; v < schemaVersion; v++ {
		if err := c.exec("BEGIN IMMEDIATE"); err != nil {
			return fmt.Errorf("begin migration from format %d: %w", v, fault(err))
		}
		if err := migrations[v-1](c); err != nil {
			return errors.Join(fmt.Errorf("migrate store from format %d: %w", v, fault(err)), c.exec("ROLLBACK"))
		}
		if err := c.script(fmt.Sprintf("PRAGMA user_version = %d; COMMIT", v+1)); err != nil {
			return fmt.Errorf("commit migration from format %d: %w", v, fault(err))
		}
	}
	return nil
}
