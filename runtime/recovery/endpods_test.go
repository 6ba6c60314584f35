package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mote-dev/mote/runtime/layout"
)

// After the pods were ended on purpose, the next start must not look for them, however cleanly the
// one before stopped.
func TestEndPods_NextStartIsAsAfterABoot(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	p := layout.For(agent)
	if err := os.MkdirAll(p.Marks, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLastStop(p); err != nil {
		t.Fatal(err)
	}
	if err := MarkCleanStop(p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := EndPods(t.Context(), agent); err != nil {
			t.Fatal(err)
		}
	}
	last, err := ReadLastStop(p)
	if err != nil || last.SameBoot || last.Clean {
		t.Errorf("last stop is %+v, %v; want as after a boot", last, err)
	}
}
