package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tables says which results files there are, what they are of, and how RESULTS.md calls them.
var tables = []struct {
	file, title string
	which       selection
}{
	{"two-nodes.jsonl", "Conformance, two nodes", conformanceTests},
	{"one-node.jsonl", "Conformance, one node", conformanceTests},
	{"beyond-two-nodes.jsonl", "Beyond conformance, two nodes", beyondTests},
	{"beyond-one-node.jsonl", "Beyond conformance, one node", beyondTests},
}

// writeTable renders all results files beside the settings' one.
func writeTable(ctx context.Context, s settings, to string) error {
	out, err := exec.CommandContext(ctx, s.suite, "--version").Output()
	if err != nil {
		return fmt.Errorf("ask the suite for its version: %w", err)
	}
	var text strings.Builder
	fmt.Fprintf(&text,
		"# Conformance results\n\nWritten by `make conformance-table` from what is in `results/`; "+
			"[docs/conformance.md](../../../docs/conformance.md) says what it means.\n\n")
	fmt.Fprintf(&text, "The suite is that of Kubernetes %s.\n", strings.TrimSpace(string(out)))
	for _, t := range tables {
		results, err := readResults(filepath.Join(filepath.Dir(s.results), t.file))
		if err != nil {
			return err
		}
		if len(results) == 0 {
			continue
		}
		all, err := listSpecs(ctx, s.suite, t.which)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "\n## %s\n\n%s", t.title, render(all, results))
	}
	if err := os.WriteFile(to, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// render tells in Markdown what results say about specs. Results of specs the suite does not have
// any more are left out.
func render(specs []spec, results []result) string {
	last, agree := newest(results)
	tries := map[string][]result{}
	for _, r := range results {
		tries[r.Spec] = append(tries[r.Spec], r)
	}
	type row struct{ total, passed, failed, skipped, open int }
	rows, sum := map[string]*row{}, row{}
	versions := map[string]int{}
	var seconds float64
	twice := 0
	var from, until time.Time
	var failures, skips, open, retried []string
	for _, s := range specs {
		if rows[s.sig] == nil {
			rows[s.sig] = &row{}
		}
		r, ran := last[s.name]
		for _, w := range []*row{rows[s.sig], &sum} {
			w.total++
			switch {
			case !ran:
				w.open++
			case r.Outcome == passed:
				w.passed++
			case r.Outcome == skipped:
				w.skipped++
			default:
				w.failed++
			}
		}
		if !ran {
			open = append(open, "- "+s.name)
			continue
		}
		versions[r.Mote]++
		if agree[s.name] > 1 {
			twice++
		}
		seconds += r.Seconds
		if from.IsZero() || r.At.Before(from) {
			from = r.At
		}
		if end := r.At.Add(time.Duration(r.Seconds * float64(time.Second))); end.After(until) {
			until = end
		}
		switch r.Outcome {
		case failed:
			failures = append(failures, fmt.Sprintf("- %s (mote %s): %s", s.name, r.Mote, r.Reason))
		case skipped:
			skips = append(skips, fmt.Sprintf("- %s: %s", s.name, r.Reason))
		case passed:
			if early := failedBefore(tries[s.name]); early != "" {
				retried = append(retried,
					fmt.Sprintf("- %s: failed with mote %s, passed with %s", s.name, early, r.Mote))
			}
		}
	}
	var b strings.Builder
	b.WriteString("| SIG | tests | passed | failed | skipped | not run |\n|---|--:|--:|--:|--:|--:|\n")
	for _, sig := range slices.Sorted(maps.Keys(rows)) {
		w := rows[sig]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d |\n", sig, w.total, w.passed, w.failed, w.skipped, w.open)
	}
	fmt.Fprintf(&b, "| **all** | **%d** | **%d** | **%d** | **%d** | **%d** |\n\n", sum.total, sum.passed, sum.failed,
		sum.skipped, sum.open)
	fmt.Fprintf(&b, "Run from %s to %s UTC; the tests took %v together, counted one by one.\n",
		from.Format("2006-01-02 15:04"), until.Format("2006-01-02 15:04"),
		(time.Duration(seconds) * time.Second).String())
	fmt.Fprintf(&b, "Tests whose last two runs agree: %d.\n", twice)
	if len(versions) == 1 {
		fmt.Fprintf(&b, "All with mote %s.\n", slices.Collect(maps.Keys(versions))[0])
	} else {
		b.WriteString("Several versions of mote contributed, the newest result of each test counts: ")
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(versions)) {
			parts = append(parts, fmt.Sprintf("%s (%d)", v, versions[v]))
		}
		b.WriteString(strings.Join(parts, ", ") + ".\n")
	}
	for _, l := range []struct {
		title string
		lines []string
	}{
		{"Failed", failures}, {"Skipped by the suite", skips}, {"Passed after an earlier failure", retried},
		{"Not run yet", open},
	} {
		if len(l.lines) > 0 {
			fmt.Fprintf(&b, "\n### %s\n\n%s\n", l.title, strings.Join(l.lines, "\n"))
		}
	}
	return b.String()
}

// failedBefore names the versions an earlier run of a spec failed with.
func failedBefore(tries []result) string {
	var versions []string
	for _, r := range tries {
		if r.Outcome == failed && !slices.Contains(versions, r.Mote) {
			versions = append(versions, r.Mote)
		}
	}
	return strings.Join(versions, ", ")
}
