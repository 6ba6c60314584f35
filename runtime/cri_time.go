package runtime

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// clockSlack is what a time may lie ahead without being of another clock: it was
// taken by another process.
const clockSlack = time.Second

// past moves a time of the future, in nanoseconds, to the first seconds of 1970,
// in the same order. Such times come of a clock that was ahead and has been set
// back. The kubelet takes what was created last for what runs, and counts its
// pauses from when something ended: with times of the future it would put
// container after container in the place of a dead one that looks newer, and pause
// until the clock has caught up.
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
