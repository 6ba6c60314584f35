package nfttool

import (
	"context"
	"errors"
	"fmt"
)

// stableTries bounds how often Apply starts over because another program changes the table at the
// same time.
const stableTries = 5

// Table is one table of family inet that is always replaced as a whole. It is not safe for
// concurrent use.
type Table struct {
	// Name is the table's name.
	Name string

	applied string // the script last applied
	listed  string // how the kernel lists the table that script creates; Intact compares with it

	written func() // called between writing and listing; for tests
}

// Script returns the script that replaces the table's content by body, the text between its braces.
// Adding the table first makes the deletion succeed if there was none. The kernel applies the
// script atomically.
func (t *Table) Script(body string) string {
	return fmt.Sprintf("add table inet %s\ndelete table inet %s\ntable inet %s {\n%s}\n", t.Name, t.Name, t.Name, body)
}

// Apply runs script, which is from [Table.Script], and records the result for [Table.Intact].
func (t *Table) Apply(ctx context.Context, script string) error {
	if script != t.applied {
		t.applied, t.listed = "", ""
	}
	// Another program may change the table between our write and our listing, and its version would
	// pass for ours. A listing is trusted if the generation shows that nothing but our write
	// happened. If the generation is unknown, or others write all the time, two equal listings
	// after two writes are trusted: not one, as the same disturbance may happen twice.
	before := t.listed
	equal := false
	for range stableTries {
		began, genErr := generation()
		if _, err := Run(ctx, script, "-f", "-"); err != nil {
			return fmt.Errorf("apply table inet %s: %w", t.Name, err)
		}
		if t.written != nil {
			t.written()
		}
		listed, err := t.list(ctx)
		if err != nil {
			return err
		}
		ended, err := generation()
		alone := genErr == nil && err == nil && ended == began+1
		equal = listed == before
		before = listed
		if alone || equal && genErr != nil {
			t.applied, t.listed = script, listed
			return nil
		}
	}
	if equal {
		t.applied, t.listed = script, before
		return nil
	}
	return fmt.Errorf("apply table inet %s: another program keeps changing it", t.Name)
}

// Intact reports whether the table is unchanged since the last Apply. It is false before the first.
func (t *Table) Intact(ctx context.Context) (bool, error) {
	if t.applied == "" {
		return false, nil
	}
	listed, err := t.list(ctx)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return listed == t.listed, err
}

// Applied returns the script last applied, or nothing.
func (t *Table) Applied() string { return t.applied }

// Remove deletes the table; it succeeds if there is none, or nft is not installed.
func (t *Table) Remove(ctx context.Context) error {
	t.applied, t.listed = "", ""
	if !Available() {
		return nil
	}
	if _, err := Run(ctx, "", "delete", "table", "inet", t.Name); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete table inet %s: %w", t.Name, err)
	}
	return nil
}

// list returns the table without counters, so that listings of equal rules are equal.
func (t *Table) list(ctx context.Context) (string, error) {
	return Run(ctx, "", "--stateless", "list", "table", "inet", t.Name)
}
