package cmd

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/mote-dev/mote/internal/hostcheck"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/server/pki"
	"github.com/mote-dev/mote/store"
)

// remedies say what to do about an error that a part can only describe.
var remedies = []struct {
	err    error
	remedy string
}{
	{store.ErrNewer, "use the version of mote that wrote it, or a newer one"},
	{store.ErrForeign, "move the file away, or give another --data-dir"},
	{store.ErrDamaged, "restore the newest snapshot with `mote snapshot restore`; `mote snapshot list` shows them"},
	{store.ErrInUse, "stop the process that uses it"},
	{pki.ErrDamaged,
		"put the file back from a backup; if there is none, remove it and its key for new ones: what was signed with " +
			"it is then no longer trusted"},
	{pki.ErrIncomplete,
		"put it back from a backup; if there is none, remove the other one too for new ones: what was signed with " +
			"them is then no longer trusted"},
	{pki.ErrEnded, "set the clock if it is wrong; else make a new authority as docs/certificates.md says"},
	{bundle.ErrNoBundle, ""},
}

// errorLines turns an error into lines for the user: one for each cause, without repeats, with a
// remedy where it has none of its own.
func errorLines(err error) []string {
	var lines []string
	for _, e := range parts(err) {
		line := strings.Join(strings.Fields(e.Error()), " ")
		for _, r := range remedies {
			if r.remedy != "" && errors.Is(e, r.err) && !strings.Contains(line, r.remedy) {
				line += ": " + r.remedy
				break
			}
		}
		if remedy := deniedRemedy(e, os.Geteuid()); remedy != "" {
			line += ": " + remedy
		}
		if remedy := hostcheck.LimitRemedy(e); remedy != "" && !strings.Contains(line, remedy) &&
			!strings.Contains(line, "sysctl -w") {
			line += ": " + remedy
		}
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// parts takes joined errors apart. An error that wraps joined ones is left whole: its own words
// belong to all of them.
func parts(err error) []error {
	if err == nil {
		return nil
	}
	// Only errors.Join's own type separates its members by line breaks.
	if joined, ok := err.(interface{ Unwrap() []error }); ok &&
		strings.Count(err.Error(), "\n") >= len(joined.Unwrap())-1 {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, parts(e)...)
		}
		return all
	}
	return []error{err}
}
