package harness

import (
	"regexp"
	"slices"
	"testing"
)

func TestAlarms_FindsWhatIsAboveInfo(t *testing.T) {
	log := `--- start 1 at 2026-11-30T17:09:10Z: mote server
2026-11-30T17:09:10.123Z INFO server mote is ready
2026-11-30T17:09:11.123Z WARN server no answer: ERROR 5
2026-11-30T17:09:11.124Z DEBUG agent an ERROR of somebody else's
2026-11-30T17:09:12.123Z ERROR kubelet lost a pod
2026-11-30T17:09:13.123Z WARN check cgroup version 1
E1130 17:09:14.123456  1 reflector.go:1] past the log
panic: runtime error
`
	got := alarms(log, []*regexp.Regexp{regexp.MustCompile(`cgroup version 1$`)})
	want := []string{
		"2026-11-30T17:09:11.123Z WARN server no answer: ERROR 5",
		"2026-11-30T17:09:12.123Z ERROR kubelet lost a pod",
		"E1130 17:09:14.123456  1 reflector.go:1] past the log",
		"panic: runtime error",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
