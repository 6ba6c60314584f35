package server

import (
	"os"
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/part"
)

// TestParts_Documentation_ShowsTheTable holds docs/architecture.md to the table of the server's
// parts.
func TestParts_Documentation_ShowsTheTable(t *testing.T) {
	const page = "../docs/architecture.md"
	begin, end := "<!-- server parts -->\n", "<!-- end of server parts -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := part.Markdown(parts)
	_, rest, found := strings.Cut(string(text), begin)
	got, _, closed := strings.Cut(rest, end)
	if !found || !closed || strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s differs from the table in server/parts.go; put this between %q and %q:\n%s", page,
			strings.TrimSpace(begin), end, want)
	}
}
