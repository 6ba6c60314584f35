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

var (
	asRoot   = flag.Bool("root", false, "run the tests that need root: they make namespaces")
	asKiller = flag.Bool("killer", false, "run the tests that need root and kill sandboxes, from outside of any")
	asVictim = flag.Bool("victim", false, "be what those kill")
)

func TestMain(m *testing.M) {
	flag.Parse()
	switch {
	case *asVictim:
		os.Exit(Run(victim))
	case *asRoot:
		os.Exit(Run(m.Run))
	}
	os.Exit(m.Run())
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
	// Of a folder that was there only what is new in it.
	if err := os.MkdirAll("/var/lib/sandbox/was/here", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/etc/issue"); err != nil {
		t.Fatal(err)
	}
	after, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"file: /etc/sandbox-was-here", "file: /var/lib/sandbox", "file: /var/lib/sandbox/was",
		"file: /var/lib/sandbox/was/here",
		"removed file: /etc/issue"}
	if added := before.Added(after); !slices.Equal(added, want) {
		t.Errorf("added %v, want %v", added, want)
	}
}

// What a kubelet sets for the whole kernel stays in the sandbox, and in each host.
func TestRun_KernelSettings_Private(t *testing.T) {
	needRoot(t)
	const setting = "/proc/sys/kernel/panic"
	was, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(setting, was, 0o644); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(setting, []byte("4711"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A new mount of the same file system is without what covers it.
	mountPoint := t.TempDir()
	if err := run("mount", "-t", "proc", "proc", mountPoint); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := run("umount", mountPoint); err != nil {
			t.Error(err)
		}
	}()
	for file, want := range map[string]string{setting: "4711",
		mountPoint + "/sys/kernel/panic": strings.TrimSpace(string(was))} {
		if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q (%v), want %s", file, got, err, want)
		}
	}
}

// Everything a cluster makes must be listed, and a power cut must take all of it but the files on
// disk.
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
until tr '\0' ' ' </proc/$!/cmdline | grep -q '^sleep 1000'; do sleep 0.01; done
`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	added := strings.Join(before.Added(made), "\n")
	for _, want := range []string{"sleep 1000", "mount: " + mount, "interface: test0", "network namespace: test",
		"test-a/test-b", "rule: table ip test", "file: /run/test"} {
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
	if left := before.Added(after); !slices.Equal(left,
		[]string{"mount: /proc/sys/kernel/random/boot_id", "file: " + mount}) {
		t.Errorf("left after the power cut: %v", left)
	}
	if now, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err != nil || string(now) == string(boot) {
		t.Errorf("boot id is still %s (%v)", now, err)
	}
}
