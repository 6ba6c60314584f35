package apiserver

import "testing"

type compactedTo int64

func (c compactedTo) CompactRevision() int64 { return int64(c) }

func TestHistory_CompactRevision_FollowsTheCompactorOnceItRuns(t *testing.T) {
	h := &history{}
	if got := h.CompactRevision(); got != 0 {
		t.Errorf("before the server runs: %d, want 0", got)
	}
	h.follow(compactedTo(7))
	if got := h.CompactRevision(); got != 7 {
		t.Errorf("with a compactor at 7: %d", got)
	}
}
