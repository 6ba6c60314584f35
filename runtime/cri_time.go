package runtime

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// clockSlack is how far in the future a time may be that another process took from the same clock.
const clockSlack = time.Second

// past maps a time in the future, in nanoseconds, to the first seconds of 1970, keeping the order.
// Such times come from a clock that was ahead and has been set back. The kubelet takes the
// container created last for the current one, and counts its backoff from when a container ended.
// With times in the future it would replace container after container because a dead one looks
// newer, and back off until the clock has caught up.
func past(at int64, now time.Time) int64 {
	if at <= now.Add(clockSlack).UnixNano() {
		return at
	}
	return at / int64(time.Second)
}

func pastSandboxes(list []*runtimeapi.PodSandbox, now time.Time) []*runtimeapi.PodSandbox {
	for _, s := range list {
		s.CreatedAt = past(s.CreatedAt, now)
	}
	return list
}

func pastContainers(list []*runtimeapi.Container, now time.Time) []*runtimeapi.Container {
	for _, c := range list {
		c.CreatedAt = past(c.CreatedAt, now)
	}
	return list
}

func pastStatus(s *runtimeapi.ContainerStatus, now time.Time) {
	for _, at := range []*int64{&s.CreatedAt, &s.StartedAt, &s.FinishedAt} {
		*at = past(*at, now)
	}
}
