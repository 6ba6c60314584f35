package hostcheck

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestThisHost_LeavesNothingBehind(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	Run(ThisHost(), Options{DataDir: filepath.Join(dir, "a", "b"), Node: true,
		Ports: []Port{{Address: "127.0.0.1:0", Purpose: "a test"}}})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("files left: %v, %v", entries, err)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(after), dir) || strings.Contains(string(before), dir) {
		t.Errorf("mounts left:\n%s", after)
	}
	now, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range now {
		if strings.HasPrefix(l.Name, "try") {
			t.Errorf("interface %s left among %d", l.Name, len(links))
		}
	}
}

func TestThisHost_OverlayOnUnsupportedFileSystem(t *testing.T) {
	requireRoot(t)
	// An overlay cannot hold the upper folder of another one.
	dir := t.TempDir()
	var paths []any
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	merged := paths[3].(string)
	if err := unix.Mount("overlay", merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", paths[:3]...)); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	h := ThisHost()
	if fs := h.FileSystem(filepath.Join(merged, "not", "there")); fs != "overlayfs" {
		t.Errorf("file system is %q, want overlayfs", fs)
	}
	if err := h.TryOverlay(merged); !MeansNoOverlay(err) {
		t.Errorf("an overlay on an overlay: %v, want that it does not work", err)
	}
	// What a node does there instead.
	if err := h.TryCopies(merged); err != nil {
		t.Errorf("copies of images: %v", err)
	}
	if err := h.TryLocks(merged); err != nil {
		t.Errorf("locks: %v", err)
	}
	if entries, err := os.ReadDir(merged); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestThisHost_ReadOnlyDir(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	err := ThisHost().TryDir(filepath.Join(dir, "mote"))
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("error is %v, want read-only", err)
	}
}

func TestThisHost_DirBelowFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ThisHost().TryDir(filepath.Join(file, "mote")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error is %v, want one that names %s", err, file)
	}
}

func TestThisHost_PortOwner(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("skip %s: %v", address, err)
			continue
		}
		defer l.Close()
		h := ThisHost()
		bound := l.Addr().String()
		if err := h.TryListen(bound); err == nil || !isInUse(err) {
			t.Errorf("listening on %s twice: %v", bound, err)
		}
		if owner := h.PortOwner(bound); !strings.Contains(owner, fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("owner of %s is %q, want this process", bound, owner)
		}
	}
}

func TestPortOwner_FakeProc(t *testing.T) {
	proc := t.TempDir()
	for _, dir := range []string{"net", "12/fd", "13/fd"} {
		if err := os.MkdirAll(filepath.Join(proc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"net/tcp": "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid" +
			"  timeout inode\n" +
			"   0: 0100007F:192B 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n" +
			"   1: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n",
		"12/comm": "client\n", "13/comm": "nginx\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(proc, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for fd, target := range map[string]string{"12/fd/3": "socket:[111]", "13/fd/4": "/dev/null",
		"13/fd/5": "socket:[222]"} {
		if err := os.Symlink(target, filepath.Join(proc, fd)); err != nil {
			t.Fatal(err)
		}
	}
	if got := portOwner(proc, ":6443"); got != "nginx (process 13)" {
		t.Errorf("owner is %q", got)
	}
	if got := portOwner(proc, ":6444"); got != "" {
		t.Errorf("owner of a free port is %q", got)
	}
}
