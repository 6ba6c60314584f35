package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// outcome is what came of a spec.
type outcome string

// The outcomes. One that was cut short has none: it is run again.
const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"
)

// result is one line of a results file: one run of one spec. The newest of a spec counts, the
// others tell what was tried.
type result struct {
	Spec    string    `json:"spec"`
	Outcome outcome   `json:"outcome"`
	Seconds float64   `json:"seconds"`
	Mote    string    `json:"mote"` // version of the executable
	At      time.Time `json:"at"`
	Reason  string    `json:"reason,omitempty"` // first lines of what a failed or skipped one says
}

// readResults is empty without a file.
func readResults(file string) ([]result, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	defer f.Close()
	var list []result
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		var r result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("read results %s, line %d: %w", file, n, err)
		}
		list = append(list, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read results %s: %w", file, err)
	}
	return list, nil
}

// addResult appends r in one write, so that an interrupted run leaves whole lines.
func addResult(file string, r result) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make folder for results: %w", err)
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open results: %w", err)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		f.Close()
		return fmt.Errorf("add result: %w", err)
	}
	return f.Close()
}

// newest returns the last result of each spec, and how many of its last results have the same
// outcome.
func newest(list []result) (last map[string]result, agree map[string]int) {
	last, agree = map[string]result{}, map[string]int{}
	for _, r := range list {
		if last[r.Spec].Outcome != r.Outcome {
			agree[r.Spec] = 0
		}
		last[r.Spec] = r
		agree[r.Spec]++
	}
	return last, agree
}
