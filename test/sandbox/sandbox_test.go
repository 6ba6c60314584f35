//go:build linux

package sandbox

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var asRoot = flag.Bool("root", false, "run the tests that need root: they make namespaces")

func TestMain(m *testing.M) {
	flag.Parse()
	if !*asRoot {
		os.Exit(m.Run())
	}
	os.Exit(Run(m.Run))
}

func needRoot(t *testing.T) {
	t.Helper()
	if !*asRoot {
		t.Skip("needs root; pass -root")
	}
}

func TestRun_HostFolders_PrivateAndListed(t *testing.T) {
	needRoot(t)
	before, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if len(before[Processes]) != 0 {
		t.Errorf("processes of others are seen: %v", before[Processes])
	}
	if err := os.WriteFile("/etc/sandbox-was-here", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	after, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	if added := before.Added(after); !slices.Equal(added, []string{"file: /etc/sandbox-was-here"}) {
		t.Errorf("added %v", added)
	}
}

// Everything a cluster makes must be listed, and a power cut must take all of it but the files on disk.
func TestPowerCut_EverythingMade_IsGone(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	before, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	mount := filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `set -e
ip link add test0 type bridge
ip netns add test
mount -t tmpfs tmpfs ` + mount + `
nft add table ip test
touch /run/test
for d in /sys/fs/cgroup/memory /sys/fs/cgroup; do if [ -e $d/cgroup.procs ]; then mkdir -p $d/test-a/test-b; break; fi; done
setsid sleep 1000 >/dev/null 2>&1 &
`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	added := strings.Join(before.Added(made), "\n")
	for _, want := range []string{"sleep 1000", "mount: " + mount, "interface: test0", "network namespace: test", "test-a/test-b", "rule: table ip test", "file: /run/test"} {
		if !strings.Contains(added, want) {
			t.Errorf("snapshot lacks %q:\n%s", want, added)
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if err := PowerCut(before); err != nil {
		t.Fatal(err)
	}
	after, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left := before.Added(after); !slices.Equal(left, []string{"mount: /proc/sys/kernel/random/boot_id", "file: " + mount}) {
		t.Errorf("left after the power cut: %v", left)
	}
	if now, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err != nil || string(now) == string(boot) {
		t.Errorf("boot id is still %s (%v)", now, err)
	}
}
