package agent

import (
	"testing"

	"github.com/mote-dev/mote/internal/part/parttest"
)

func TestParts_Documentation_ShowsTheTable(t *testing.T) {
	parttest.Documented(t, "../docs/architecture.md", "agent", parts)
}
