package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file is a store only if it consists of what a store makes and nothing else: SQLite would run a
// foreign trigger with every write.
func TestCheckSchema_ForeignParts(t *testing.T) {
	for _, test := range []struct{ name, sql, says string }{
		{"trigger", "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM cur; END", "trigger t"},
		{"trigger on an own table of its", "CREATE TABLE x(a); CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT 1; END",
			"table x, it has a foreign trigger t"},
		{"table", "CREATE TABLE x(a)", "table x"},
		{"index", "CREATE INDEX x ON log(key)", "index x"},
		{"view", "CREATE VIEW x AS SELECT * FROM log", "view x"},
		{"view in place of a table", "ALTER TABLE lease RENAME TO l; CREATE VIEW lease AS SELECT * FROM l",
			"its view lease is not the store's"},
		{"column more", "ALTER TABLE meta ADD COLUMN x", "its table meta is not the store's"},
		{"column renamed", "ALTER TABLE lease RENAME COLUMN ttl TO x", "its table lease is not the store's"},
		{"table gone", "DROP TABLE lease", "has no lease"},
		{"index gone", "DROP INDEX log_lease", "has no log_lease"},
		{"other index of the name", "DROP INDEX log_lease; CREATE INDEX log_lease ON log(lease)",
			"its index log_lease is not the store's"},
		{"older format with the newer's table", "PRAGMA user_version = 1", "table tally"},
		{"no format", "PRAGMA user_version = 0", "its format is 0"},
		{"format below all", "PRAGMA user_version = -3", "its format is -3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := closedStore(t)
			script(t, path, test.sql)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for what, refused := range map[string]func() error{
				"open": func() error {
					_, err := Open(t.Context(), Options{Path: path})
					return err
				},
				"open of a large file": func() error {
					_, err := Open(t.Context(), Options{Path: path, SkipCheck: true})
					return err
				},
				"check": func() error {
					_, err := CheckFile(t.Context(), path)
					return err
				},
				"snapshot": func() error {
					_, err := Snapshot(t.Context(), path, t.TempDir())
					return err
				},
				"restore": func() error {
					_, err := Restore(t.Context(), path, filepath.Join(t.TempDir(), "state.db"))
					return err
				},
			} {
				if err := refused(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("%s: %v, want damage that names %q", what, err, test.says)
				}
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the refused file was changed (%v)", err)
			}
		})
	}
}

// Files of every format, also migrated ones, and those that somebody let SQLite analyze.
func TestCheckSchema_OwnFiles(t *testing.T) {
	old := func(t *testing.T) string {
		b, err := os.ReadFile("testdata/format1.db")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "state.db")
		write(t, path, b)
		return path
	}
	for name, make := range map[string]func(t *testing.T) string{
		"format 1": old,
		"format 1, migrated": func(t *testing.T) string {
			path := old(t)
			s, err := Open(t.Context(), Options{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return path
		},
		"format 2": closedStore,
		"analyzed": func(t *testing.T) string {
			path := closedStore(t)
			script(t, path, "ANALYZE")
			return path
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := make(t)
			if _, err := CheckFile(t.Context(), path); err != nil {
				t.Errorf("check: %v", err)
			}
			copied, err := Snapshot(t.Context(), path, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			restored := filepath.Join(t.TempDir(), "state.db")
			if _, err := Restore(t.Context(), copied.Path, restored); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{path, restored} {
				openStore(t, Options{Path: p})
			}
		})
	}
}
