package store

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/mote-dev/mote/store"
)

// TestEtcdctl uses the store as a person at a shell does.
func TestEtcdctl(t *testing.T) {
	bin := binary(t, "go.etcd.io/etcd/etcdctl/v3")
	p, err := startStore(t, filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	snapshot := filepath.Join(t.TempDir(), "snap.db")
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"put", "a", "1"}, `^OK`},
		{[]string{"put", "a", "2", "--prev-kv"}, `OK\na\n1`},
		{[]string{"put", "a/b", "3"}, `^OK`},
		{[]string{"get", "a", "--prefix", "--order=DESCEND", "--sort-by=CREATE"}, `^a/b\n3\na\n2\n$`},
		{[]string{"get", "a", "--rev=2"}, `^a\n1\n$`},
		{[]string{"get", "a", "--prefix", "--count-only", "-w=fields"}, `"Count" : 2`},
		{[]string{"del", "a", "--prev-kv"}, `^1\na\n2`},
		{[]string{"lease", "grant", "100"}, `lease [0-9a-f]+ granted with TTL\(100s\)`},
		{[]string{"lease", "list"}, `found 1 leases`},
		{[]string{"compaction", "4"}, `compacted revision 4`},
		{[]string{"compaction", "1"}, `required revision has been compacted`},
		{[]string{"endpoint", "health"}, `is healthy`},
		{[]string{"endpoint", "status"}, `3\.7\.0`},
		{[]string{"endpoint", "hashkv"}, `, [0-9]+`},
		{[]string{"member", "list"}, `started, mote`},
		{[]string{"alarm", "list"}, `^$`},
		{[]string{"defrag"}, `Finished defragmenting`},
		{[]string{"snapshot", "save", snapshot}, `Snapshot saved`},
		{[]string{"user", "add", "u", "--no-password"}, `not capable`},
		{[]string{"auth", "enable"}, `root user does not exist`},
		{[]string{"auth", "status"}, `Authentication Status: false`},
		{[]string{"lock", "l", "echo", "held"}, `held`},
	} {
		out, _ := exec.Command(bin,
			append([]string{"--endpoints", p.addr, "--command-timeout=60s", "--dial-timeout=60s"},
				step.args...)...).CombinedOutput()
		if !regexp.MustCompile(step.want).Match(out) {
			t.Errorf("etcdctl %q said %q, want %s", step.args, out, step.want)
		}
	}
	info, err := store.CheckFile(t.Context(), snapshot)
	if err != nil || info.Revision < 5 {
		t.Errorf("snapshot of etcdctl: %+v, %v", info, err)
	}
	path := filepath.Join(t.TempDir(), "db", "state.db")
	if _, err := store.Restore(t.Context(), snapshot, path); err != nil {
		t.Errorf("restore it: %v", err)
	}
}
