package store

import (
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"strings"
)

// schemaVersion is kept in the file's user_version; applicationID marks a file as ours.
const (
	schemaVersion = 2
	applicationID = 0x6d6f7465 // "mote"
)

// subBits is how many bits of a row's id count the changes within one revision; the revision is
// above them.
const subBits = 22

// maxChanges is how many changes one revision can hold.
const maxChanges = 1<<subBits - 1

// schema is what a new file gets. log holds every version of every key in revision order, so that a
// write appends and history is one scan. cur has one small row a key that points at its newest
// version, tombstones included until they are compacted; older versions are found by following
// prev. That way a write touches two pages and lists are one range scan. A version of zero marks a
// tombstone, and sum is a checksum of the row. keyCounts counts keys, see there.
//
// A file is compared with it word by word, so a change of its text needs a migration that rewrites
// the file's, and schemaOf has to know the old one.
const schema = `
CREATE TABLE log(id INTEGER PRIMARY KEY, prev INTEGER, created INTEGER, version INTEGER, lease INTEGER, sum INTEGER, key BLOB, value BLOB);
CREATE INDEX log_lease ON log(lease) WHERE lease <> 0;
CREATE TABLE cur(key BLOB PRIMARY KEY, id INTEGER, dead INTEGER) WITHOUT ROWID;
CREATE TABLE lease(id INTEGER PRIMARY KEY, ttl INTEGER, remaining INTEGER);
CREATE TABLE tally(start BLOB PRIMARY KEY, n INTEGER) WITHOUT ROWID;
CREATE TABLE meta(name TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;
`

// schemaOf returns the statements that made a file of a format, by what they made.
func schemaOf(format int64) map[string]string {
	made := map[string]string{}
	for line := range strings.Lines(schema) {
		if sql := strings.TrimSuffix(strings.TrimSpace(line), ";"); sql != "" {
			name, _, _ := strings.Cut(strings.Fields(sql)[2], "(")
			made[name] = sql
		}
	}
	if format < 2 {
		delete(made, "tally")
	}
	return made
}

// Names in meta.
const (
	metaCompacted = "compacted" // revision asked to compact to, -1 before the first
	metaSwept     = "swept"     // revision up to which superseded rows are gone
	metaFloor     = "floor"     // the store's revision is at least this one
	metaCounted   = "tallied"   // revision that keyCounts is of
	metaCluster   = "cluster"
	metaMember    = "member"
	metaUnsynced  = "unsynced" // while a store has the file open, which of its writes a power cut can lose
)

func idOf(rev, sub int64) int64 { return rev<<subBits | sub }
func revOf(id int64) int64      { return id >> subBits }

// lastID is the greatest id a row of rev can have.
func lastID(rev int64) int64 { return rev<<subBits | maxChanges }

// createSchema makes the tables in an empty file.
func createSchema(c *conn) error {
	var ids [16]byte
	if _, err := rand.Read(ids[:]); err != nil {
		return fmt.Errorf("choose cluster id: %w", err)
	}
	if err := c.script("BEGIN IMMEDIATE;" + schema); err != nil {
		return err
	}
	for name, n := range map[string]int64{
		metaCompacted: -1, metaSwept: -1, metaFloor: 1, metaUnsynced: allSynced, metaCounted: 0,
		metaCluster: int64(binary.LittleEndian.Uint64(ids[:8]) >> 1),
		metaMember:  int64(binary.LittleEndian.Uint64(ids[8:]) >> 1),
	} {
		if err := c.exec("INSERT INTO meta(name, n) VALUES(?, ?)", name, n); err != nil {
			return err
		}
	}
	return c.script(
		fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT; PRAGMA wal_checkpoint(TRUNCATE)",
			applicationID, schemaVersion))
}

func readMeta(c *conn) (map[string]int64, error) {
	m := map[string]int64{}
	err := c.query("SELECT name, n FROM meta", func(row []driver.Value) (bool, error) {
		m[asText(row[0])] = asInt(row[1])
		return true, nil
	})
	return m, err
}

func setMeta(c *conn, name string, n int64) error {
	return c.exec("UPDATE meta SET n = ?2 WHERE name = ?1", name, n)
}
