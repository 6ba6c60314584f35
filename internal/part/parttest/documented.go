package parttest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/mote-dev/mote/internal/part"
)

// Documented fails unless page shows table between the comments "<!-- ROLE parts -->" and
// "<!-- end of ROLE parts -->". The failure prints what belongs there.
func Documented[R any](t *testing.T, page, role string, table []part.Part[R]) {
	t.Helper()
	begin, end := fmt.Sprintf("<!-- %s parts -->", role), fmt.Sprintf("<!-- end of %s parts -->", role)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := part.Markdown(table)
	_, rest, found := strings.Cut(string(text), begin+"\n")
	got, _, closed := strings.Cut(rest, end)
	if !found || !closed || strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s differs from the table in %s/parts.go; put this between %q and %q:\n%s",
			page, role, begin, end, want)
	}
}
