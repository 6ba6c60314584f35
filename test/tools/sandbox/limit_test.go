//go:build linux

package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// testLimit is one that stands in an ordinary file.
func testLimit(t *testing.T, now int) limit {
	t.Helper()
	dir := t.TempDir()
	l := limit{file: filepath.Join(dir, "limit"), record: filepath.Join(dir, "record"), enough: 8192}
	l.set(t, now)
	return l
}

func (l limit) set(t *testing.T, n int) {
	t.Helper()
	if err := os.WriteFile(l.file, []byte(strconv.Itoa(n)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (l limit) use(t *testing.T) *os.File {
	t.Helper()
	f, err := l.raise()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// end is what the kernel does when a sandbox ends, and then what the process around it does.
func (l limit) end(t *testing.T, f *os.File) {
	t.Helper()
	f.Close()
	if err := l.lower(); err != nil {
		t.Fatal(err)
	}
}

func (l limit) want(t *testing.T, when string, n int, record bool) {
	t.Helper()
	if now, err := readNumber(l.file); err != nil || now != n {
		t.Errorf("%s the limit is %d (%v), want %d", when, now, err, n)
	}
	if _, err := os.Stat(l.record); (err == nil) != record {
		t.Errorf("%s the record is there: %v, want %v", when, err == nil, record)
	}
}

func TestLimit_Lower_LastOneRestores(t *testing.T) {
	l := testLimit(t, 128)
	first := l.use(t)
	l.want(t, "in one sandbox", 8192, true)
	second := l.use(t)
	l.end(t, first)
	l.want(t, "with one of two left", 8192, true)
	third := l.use(t)
	l.end(t, second)
	l.want(t, "with the third left", 8192, true)
	l.end(t, third)
	l.want(t, "after the last", 128, false)
	l.end(t, l.use(t))
	l.want(t, "after another", 128, false)
}

func TestLimit_Lower_AfterKill(t *testing.T) {
	l := testLimit(t, 128)
	// The process around the sandbox was killed, too.
	l.use(t).Close()
	l.want(t, "after the kill", 8192, true)
	l.end(t, l.use(t))
	l.want(t, "after the next", 128, false)

	// Killed between making the record and writing it.
	if err := os.WriteFile(l.record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.lower(); err != nil {
		t.Fatal(err)
	}
	l.want(t, "after an empty record", 128, false)
}

func TestLimit_Lower_LeavesWhatOthersSet(t *testing.T) {
	l := testLimit(t, 128)
	f := l.use(t)
	l.set(t, 20000)
	l.end(t, f)
	l.want(t, "set by an administrator meanwhile", 20000, false)
	f = l.use(t)
	l.want(t, "high enough", 20000, true)
	l.end(t, f)
	l.want(t, "high enough, at the end", 20000, false)
}

func TestLimit_Raise_RecordRemovedMeanwhile(t *testing.T) {
	l := testLimit(t, 128)
	f, err := os.OpenFile(l.record, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(l.record); err != nil {
		t.Fatal(err)
	}
	if again, err := l.raiseWith(f); err != nil || !again {
		t.Errorf("a record that was removed is used: %v, %v", again, err)
	}
	l.want(t, "then", 128, false)
}
