package harness

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// aboveInfo matches a line of mote's log above INFO, and what reached its output past the log: a
// line of klog's own format, or a crash.
var aboveInfo = regexp.MustCompile(
	`^\S+\s+(WARN|ERROR|DPANIC|PANIC|FATAL)\s|^[WEF]\d{4} |^(panic|fatal error|WARNING: DATA RACE)`)

// Alarms returns the lines of the whole log above INFO, but for those that match an expected one.
// Each expected line needs a reason where it is named.
func (p *Process) Alarms(t *testing.T, expected ...*regexp.Regexp) []string {
	t.Helper()
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return alarms(string(data), expected)
}

func alarms(log string, expected []*regexp.Regexp) []string {
	return slices.DeleteFunc(strings.Split(strings.TrimSpace(log), "\n"), func(line string) bool {
		return !aboveInfo.MatchString(line) ||
			slices.ContainsFunc(expected, func(e *regexp.Regexp) bool { return e.MatchString(line) })
	})
}
