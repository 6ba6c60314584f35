package nfttool

import (
	"context"
	"errors"
	"fmt"
)

// stableTries bounds how often Apply repeats itself while another program changes the table under its hands.
const stableTries = 5

// Table is one table of family inet that is only ever replaced as a whole. It is not safe for concurrent use.
type Table struct {
	// Name is the table's name.
	Name string

	applied string // the script last applied
	listed  string // how the kernel lists what that script makes; what Intact compares with

	written func() // called between writing and listing; for tests
}

// Script returns what replaces the table by body, the text between its braces. Adding before deleting makes the deletion
// succeed also where there was no table, and the kernel applies the script in one step.
func (t *Table) Script(body string) string {
	return fmt.Sprintf("add table inet %s\ndelete table inet %s\ntable inet %s {\n%s}\n", t.Name, t.Name, t.Name, body)
}

// Apply makes the table be what script, made by [Table.Script], says.
func (t *Table) Apply(ctx context.Context, script string) error {
	if script != t.applied {
		t.applied, t.listed = "", ""
	}
	// Another program may change the table between our writing and our listing, and its version would then pass for ours. A
	// listing counts if nothing but our writing has happened in the packet filter around it. Where that cannot be told, or
	// others write all the time, two equal listings after two writings are taken for the truth: one may be disturbed twice in
	// the same way.
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

// Intact reports whether the table is as Apply last left it; false before the first Apply.
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

// Applied is the script last applied, or empty.
func (t *Table) Applied() string { return t.applied }

// Remove deletes the table; it succeeds where there is none, or no tool.
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

// list prints the table without counters, so that two listings of equal rules are equal.
func (t *Table) list(ctx context.Context) (string, error) {
	return Run(ctx, "", "--stateless", "list", "table", "inet", t.Name)
}
