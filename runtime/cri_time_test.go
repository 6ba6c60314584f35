package runtime

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPast_TimesOfTheFuture_KeepTheirOrderAndComeFirst(t *testing.T) {
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	// Oldest first: two of a clock three years ahead, then those of the right one.
	times := []time.Time{now.AddDate(3, 0, 0), now.AddDate(3, 0, 0).Add(time.Minute), now.Add(-time.Hour), now}
	for i := 1; i < len(times); i++ {
		if a, b := past(times[i-1].UnixNano(), now), past(times[i].UnixNano(), now); a >= b {
			t.Errorf("%v is not before %v", times[i-1], times[i])
		}
	}
	if got := past(now.UnixNano(), now); got != now.UnixNano() {
		t.Errorf("the present became %d", got)
	}
	// Zero means that it has not happened.
	status := &runtimeapi.ContainerStatus{CreatedAt: now.AddDate(1, 0, 0).UnixNano(),
		StartedAt: now.AddDate(1, 0, 0).Add(time.Second).UnixNano()}
	pastStatus(status, now)
	if status.FinishedAt != 0 || status.CreatedAt == 0 || status.CreatedAt >= status.StartedAt ||
		status.StartedAt > now.UnixNano() {
		t.Errorf("status became %v", status)
	}
}
