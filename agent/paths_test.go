package agent

import (
	"slices"
	"testing"
)

func TestPaths_TwoNodesOfOneMachineShareNothing(t *testing.T) {
	paths := func(dir string) []string { return []string{PodLogsDir(dir), CgroupRoot(dir), Bridge(dir)} }
	if got, want := paths("/var/lib/mote/"), []string{"/var/log/pods", "/", "mote0"}; !slices.Equal(got, want) {
		t.Errorf("the default node uses %v, want %v", got, want)
	}
	a, b := paths("/srv/a"), paths("/srv/b")
	for i := range a {
		if a[i] == b[i] {
			t.Errorf("two nodes share %s", a[i])
		}
	}
	// The kernel takes 15 characters for the name of an interface.
	if len(a[2]) > 15 {
		t.Errorf("bridge name %q is too long", a[2])
	}
	if !slices.Equal(a, paths("/srv/a/.")) {
		t.Error("the same folder written differently is another node")
	}
}
