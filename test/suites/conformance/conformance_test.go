package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var someSpecs = []spec{
	{name: "[sig-apps] a", sig: "apps"}, {name: "[sig-apps] b", sig: "apps"},
	{name: "[sig-node] c [Serial]", sig: "node", serial: true}, {name: "[sig-node] d", sig: "node"},
}

func at(minute int) time.Time { return time.Date(2026, 1, 2, 3, minute, 0, 0, time.UTC) }

func TestResults_AddedAndRead_Same(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results", "one.jsonl")
	if list, err := readResults(file); err != nil || len(list) != 0 {
		t.Fatalf("without a file: %v, %v", list, err)
	}
	want := []result{
		{
			Spec:    "[sig-apps] a",
			Outcome: failed,
			Seconds: 1.5,
			Mote:    "v1",
			At:      at(1),
			Reason:  "it \"broke\"",
		},
		{
			Spec:    "[sig-apps] a",
			Outcome: passed,
			Seconds: 2,
			Mote:    "v2",
			At:      at(2),
		},
	}
	for _, r := range want {
		if err := addResult(file, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readResults(file)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("{\"spec\":\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := readResults(file); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("a damaged line gave %v, want an error that names line 3", err)
	}
}

func TestPick(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("# sample\n\n[sig-node] d\n[sig-apps] a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	past := []result{{Spec: "[sig-apps] a", Outcome: failed}, {Spec: "[sig-apps] b", Outcome: failed},
		{Spec: "[sig-apps] b", Outcome: passed}}
	for _, row := range []struct {
		name string
		s    settings
		want []string
	}{
		{"without a result", settings{rounds: 1}, []string{"[sig-node] c [Serial]", "[sig-node] d"}},
		{"failed last", settings{failed: true}, []string{"[sig-apps] a"}},
		{"without two that agree", settings{rounds: 2},
			[]string{"[sig-apps] a", "[sig-apps] b", "[sig-node] c [Serial]", "[sig-node] d"}},
		{"by expression", settings{focus: "apps"}, []string{"[sig-apps] a", "[sig-apps] b"}},
		{"by list", settings{list: list}, []string{"[sig-apps] a", "[sig-node] d"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			picked, err := pick(someSpecs, past, row.s)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range picked {
				names = append(names, s.name)
			}
			if !slices.Equal(names, row.want) {
				t.Errorf("got %q, want %q", names, row.want)
			}
		})
	}
}

func TestPick_ListNamesWhatIsNotThere_Refused(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("[sig-apps] renamed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := pick(someSpecs, nil, settings{list: list}); err == nil || !strings.Contains(err.Error(), "renamed") {
		t.Errorf("got %v, want an error that names the test", err)
	}
}

func TestJudge(t *testing.T) {
	sp := spec{name: "[sig-apps] Deployment works"}
	in := func(state, message string) specReport {
		r := specReport{
			ContainerHierarchyTexts: []string{"[sig-apps] Deployment"},
			LeafNodeType:            "It",
			LeafNodeText:            "works",
			State:                   state,
			RunTime:                 int64(1540 * time.Millisecond),
		}
		r.Failure.Message = message
		return r
	}
	other := specReport{LeafNodeType: "It", LeafNodeText: "something else", State: "skipped"}
	setup := specReport{LeafNodeType: "SynchronizedBeforeSuite", State: "failed"}
	setup.Failure.Message = "node is not ready"
	for _, row := range []struct {
		name   string
		rep    report
		want   outcome
		reason string
	}{
		{"passed", report{SuiteSucceeded: true, SpecReports: []specReport{other, in("passed", "")}}, passed, ""},
		{"skipped", report{SuiteSucceeded: true, SpecReports: []specReport{in("skipped", "needs two\n nodes")}},
			skipped, "needs two nodes"},
		{"failed", report{SpecReports: []specReport{in("failed", "no pod")}}, failed, "no pod"},
		{"panicked", report{SpecReports: []specReport{in("panicked", "nil")}}, failed, "nil"},
		{"preparation failed", report{SpecReports: []specReport{setup, in("skipped", "")}}, failed,
			"SynchronizedBeforeSuite: node is not ready"},
		{"suite failed after it", report{SpecialSuiteFailureReasons: []string{"timed out"},
			SpecReports: []specReport{in("passed", "")}}, failed, "timed out"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "report.json")
			data, err := json.Marshal([]report{row.rep})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := judge(sp, file, nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := (result{
				Spec:    sp.name,
				Outcome: row.want,
				Seconds: 1.5,
				Reason:  row.reason,
			}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if _, err := judge(sp, filepath.Join(t.TempDir(), "missing"), errors.New("killed")); err == nil ||
		!strings.Contains(err.Error(), "killed") {
		t.Errorf("without a report: %v, want how the suite ended", err)
	}
}

func TestRender(t *testing.T) {
	got := render(someSpecs, []result{
		{
			Spec:    "[sig-apps] a",
			Outcome: failed,
			Seconds: 1,
			Mote:    "v1",
			At:      at(1),
			Reason:  "lost",
		},
		{
			Spec:    "[sig-apps] a",
			Outcome: passed,
			Seconds: 10,
			Mote:    "v2",
			At:      at(5),
		},
		{
			Spec:    "[sig-apps] b",
			Outcome: skipped,
			Seconds: 1,
			Mote:    "v2",
			At:      at(2),
			Reason:  "needs two nodes",
		},
		{
			Spec:    "[sig-node] c [Serial]",
			Outcome: failed,
			Seconds: 90,
			Mote:    "v1",
			At:      at(6),
			Reason:  "no pod",
		},
		{
			Spec:    "[sig-apps] b",
			Outcome: skipped,
			Seconds: 1,
			Mote:    "v2",
			At:      at(3),
			Reason:  "needs two nodes",
		},
		{
			Spec:    "[sig-gone] x",
			Outcome: failed,
			Mote:    "v0",
			At:      at(0),
		},
	})
	want := `| SIG | tests | passed | failed | skipped | not run |
|---|--:|--:|--:|--:|--:|
| apps | 2 | 1 | 0 | 1 | 0 |
| node | 2 | 0 | 1 | 0 | 1 |
| **all** | **4** | **1** | **1** | **1** | **1** |

Run from 2026-01-02 03:03 to 2026-01-02 03:07 UTC; the tests took 1m41s together, counted one by one.
Tests whose last two runs agree: 1.
Several versions of mote contributed, the newest result of each test counts: v1 (1), v2 (2).

### Failed

- [sig-node] c [Serial] (mote v1): no pod

### Skipped by the suite

- [sig-apps] b: needs two nodes

### Passed after an earlier failure

- [sig-apps] a: failed with mote v1, passed with v2

### Not run yet

- [sig-node] d
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestFileName_LongNamesThatBeginAlike_Differ(t *testing.T) {
	long := "[sig-storage] " + strings.Repeat("volume ", 30)
	a, b := fileName(long+"a"), fileName(long+"b")
	if a == b || len(a) > 100 || strings.ContainsAny(a, " []/") {
		t.Errorf("names %q and %q", a, b)
	}
}

func TestOrder_SlowOnesEarlyButNotFirst(t *testing.T) {
	together, alone := order([]spec{{name: "a"}, {name: "b"}, {name: "c"}, {name: "d", serial: true, slow: true},
		{name: "e", slow: true}, {name: "f"}})
	if want := []spec{{name: "a"}, {name: "e", slow: true}, {name: "b"}, {name: "c"},
		{name: "f"}}; !slices.Equal(together, want) {
		t.Errorf("side by side: %v, want %v", together, want)
	}
	if want := []spec{{name: "d", serial: true, slow: true}}; !slices.Equal(alone, want) {
		t.Errorf("alone: %v, want %v", alone, want)
	}
}
