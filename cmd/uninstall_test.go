package cmd

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/datadir"
)

func TestEmptySlices(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kubepods.slice")
	if got, err := emptySlices(dir); err != nil || len(got) != 0 {
		t.Errorf("where there are none: %v, %v", got, err)
	}
	for path, populated := range map[string]string{
		"": "1", "kubepods-burstable.slice": "0", "kubepods-burstable.slice/kubepods-burstable-pod1.slice": "0",
		"kubepods-pod2.slice": "1", "kubepods-pod2.slice/cri-containerd-3.scope": "1",
		"kubepods-pod2.slice/cri-containerd-4.scope": "0",
	} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path, "cgroup.events"), []byte("populated "+populated+"\nfrozen 0\n"),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := emptySlices(dir); err != nil || !slices.Equal(got, []string{"kubepods-burstable.slice"}) {
		t.Errorf("empty ones: %v, %v", got, err)
	}
}

func TestKubeletMade(t *testing.T) {
	node := datadir.At("/var/lib/mote").Agent()
	kubelet := node.Kubelet()
	for _, test := range []struct {
		path, fsType string
		want         bool
	}{
		{kubelet + "/pods/u/volumes/kubernetes.io~projected/token", "tmpfs", true},
		{kubelet + "/pods/u/volumes/kubernetes.io~csi/pv/mount", "ext4", true},
		{kubelet + "/pods/u/volumes/kubernetes.io~nfs/data", "nfs4", true},
		{kubelet + "/pods/u/volumes/other~v/data", "tmpfs", false},
		{kubelet + "/pods/u/volume-subpaths/v/c/0", "ext4", true},
		{kubelet + "/pods/u/other", "ext4", false},
		{kubelet + "/pods", "ext4", false},
		{kubelet, "ext4", false},
		{"/var/lib/mote/mine", "tmpfs", false},
		{"/var/lib/mote/agent/kubelet2/pods/u/volumes/a/b", "ext4", false},
	} {
		m := &mountinfo.Info{Mountpoint: test.path, FSType: test.fsType}
		if got := kubeletMade(node.Pods(), m); got != test.want {
			t.Errorf("%s (%s): %v, want %v", test.path, test.fsType, got, test.want)
		}
	}
}

// machine is a data folder as a server and its kubelet leave it when killed.
func machine(t *testing.T) (u *uninstaller, out *bytes.Buffer, kubeconfig string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "data")
	d, err := datadir.Open(dir, dataVersions())
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig = filepath.Join(root, "etc", "kubeconfig.yaml")
	if err := d.Commit(dataVersions()); err != nil {
		t.Fatal(err)
	}
	if err := d.RecordOutside(kubeconfig); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		filepath.Join(dir, "server/tls/ca.crt"):                                    "authority",
		filepath.Join(dir, "server/db/state.db"):                                   "data",
		filepath.Join(dir, "bin/0123/runc"):                                        "",
		filepath.Join(dir, "agent/kubelet/pods/uid1/volumes/kubernetes.io~nfs/v/"): "",
		kubeconfig: "ca: " + base64.StdEncoding.EncodeToString([]byte("authority")),
	} {
		if strings.HasSuffix(path, "/") || content == "" && strings.Contains(path, "volumes") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, content)
	}
	out = &bytes.Buffer{}
	return &uninstaller{program: program{stdout: out}, dataDir: dir}, out, kubeconfig
}

// finish runs the steps that need no packet filter or container runtime.
func finish(t *testing.T, u *uninstaller) {
	t.Helper()
	node := datadir.At(u.dataDir).Agent()
	if err := u.removeVolumes(node); err != nil {
		t.Fatal(err)
	}
	if err := u.removeFiles(node); err != nil {
		t.Fatal(err)
	}
}

func TestUninstaller_RemovesAll(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("HOME", t.TempDir())
	u, out, kubeconfig := machine(t)
	finish(t, u)
	if left := list(t, filepath.Dir(u.dataDir)); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if !strings.Contains(out.String(), "removed "+kubeconfig) {
		t.Errorf("says %q", out.String())
	}
	finish(t, u) // once more, as after an interruption
}

func TestUninstaller_KeepsWhatIsNotMotes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("HOME", t.TempDir())
	u, out, kubeconfig := machine(t)
	// Another cluster's kubeconfig at the same place, a file of the user's, a disk in a volume, and
	// one mounted by hand.
	writeFile(t, kubeconfig, "ca: other")
	writeFile(t, filepath.Join(u.dataDir, "notes"), "mine")
	disk := t.TempDir()
	writeFile(t, filepath.Join(disk, "file"), "precious")
	volume := filepath.Join(u.dataDir, "agent/kubelet/pods/uid1/volumes/kubernetes.io~nfs/v")
	byHand := filepath.Join(u.dataDir, "server", "disk")
	if err := os.MkdirAll(byHand, 0o755); err != nil {
		t.Fatal(err)
	}
	for target, flags := range map[string]uintptr{volume: unix.MS_BIND, byHand: unix.MS_BIND,
		filepath.Join(u.dataDir, "agent/kubelet"): unix.MS_BIND | unix.MS_REC} {
		source := disk
		if filepath.Base(target) == "kubelet" {
			source = target
		}
		if err := unix.Mount(source, target, "", flags, ""); err != nil {
			t.Skipf("no bind mounts here: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	finish(t, u)
	if data, err := os.ReadFile(filepath.Join(disk, "file")); err != nil || string(data) != "precious" {
		t.Fatalf("the disk's file is %q, %v", data, err)
	}
	if mounted, _ := mountinfo.Mounted(byHand); !mounted {
		t.Error("what was mounted by hand is gone")
	}
	if mounted, _ := mountinfo.Mounted(volume); mounted {
		t.Error("the pod's volume is still mounted")
	}
	if data, err := os.ReadFile(kubeconfig); err != nil || string(data) != "ca: other" {
		t.Errorf("the other cluster's kubeconfig is %q, %v", data, err)
	}
	want := []string{"notes", "server", "server/disk", "server/disk/file"}
	if got := list(t, u.dataDir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("left %v, want %v", got, want)
	}
	if len(u.left) != 1 || u.left[0] != byHand {
		t.Errorf("left on record: %v", u.left)
	}
	if !strings.Contains(out.String(), "another cluster") {
		t.Errorf("says %q", out.String())
	}
}

func TestRemovePodLogs_OnlyOurPods(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only it may set attributes of the trusted kind")
	}
	root := t.TempDir()
	logs, agentDir := filepath.Join(root, "logs"), filepath.Join(root, "mote/agent")
	const mark = "trusted.mote.data-dir"
	for dir, owner := range map[string]string{
		"default_running_uid1": agentDir, "default_unmarked_uid2": "", "default_deleted_uid3": agentDir,
		"default_foreign_uid4": "", "default_neighbour_uid5": agentDir + "2", "uid2": "",
	} {
		dir = filepath.Join(logs, dir)
		if err := os.MkdirAll(filepath.Join(dir, "main"), 0o755); err != nil {
			t.Fatal(err)
		}
		if owner == "" {
			continue
		}
		if err := unix.Setxattr(dir, mark, []byte(owner), 0); errors.Is(err, unix.ENOTSUP) {
			t.Skipf("the file system of %s takes no attributes", root)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, uid := range []string{"uid1", "uid2"} {
		if err := os.MkdirAll(filepath.Join(agentDir, "kubelet/pods", uid), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := removePodLogs(logs, datadir.Agent(agentDir)); err != nil {
		t.Fatal(err)
	}
	want := "default_foreign_uid4 default_foreign_uid4/main default_neighbour_uid5 default_neighbour_uid5/main uid2 uid2/main"
	if got := strings.Join(list(t, logs), " "); got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}

func TestRemoveContainerLogLinks_OnlyDangling(t *testing.T) {
	dir := t.TempDir()
	live := filepath.Join(dir, "pods", "a")
	if err := os.MkdirAll(filepath.Dir(live), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, live, "")
	links := filepath.Join(dir, "containers")
	if err := os.Mkdir(links, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"live.log": live, "gone.log": filepath.Join(dir, "pods", "b"),
		"foreign.log": "/nowhere/else"} {
		if err := os.Symlink(target, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeContainerLogLinks(links); err != nil {
		t.Fatal(err)
	}
	if got := list(t, links); strings.Join(got, " ") != "foreign.log live.log" {
		t.Errorf("left %v", got)
	}
}

func TestRemoveDevicePlugins_OnlyOurs(t *testing.T) {
	for _, test := range []struct {
		name  string
		extra string
		live  bool
		want  string
	}{
		{"ours", "", false, ""},
		{"somebody answers", "", true, "kubelet kubelet/device-plugins kubelet/device-plugins/kubelet.sock"},
		{"another kubelet's pods", "pods", false,
			"kubelet kubelet/device-plugins kubelet/device-plugins/kubelet.sock kubelet/pods"},
		{"a plugin's socket", "device-plugins/gpu.sock", false,
			"kubelet kubelet/device-plugins kubelet/device-plugins/gpu.sock kubelet/device-plugins/kubelet.sock"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := shortDir(t)
			home := filepath.Join(dir, "kubelet")
			if err := os.MkdirAll(filepath.Join(home, "device-plugins"), 0o755); err != nil {
				t.Fatal(err)
			}
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(home, "device-plugins", "kubelet.sock")})
			if err != nil {
				t.Fatal(err)
			}
			// A killed kubelet leaves its socket's file.
			l.SetUnlinkOnClose(false)
			if test.live {
				defer l.Close()
			} else if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if test.extra != "" {
				writeFile(t, filepath.Join(home, test.extra), "")
			}
			if err := removeDevicePlugins(home); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(list(t, dir), " "); got != test.want {
				t.Errorf("left %q, want %q", got, test.want)
			}
		})
	}
}

// looped makes path a link to itself: looking at it fails, and not because nothing is there.
func looped(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(path), path); err != nil {
		t.Fatal(err)
	}
}

func TestUninstaller_UnreadableIsNotMissing(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(u *uninstaller) error
		path func(datadir.Paths) string
	}{
		{"whether there was a node", func(u *uninstaller) error { return u.run(t.Context()) },
			func(p datadir.Paths) string { return p.Agent().Dir() }},
		{"whether it is mote's", func(u *uninstaller) error {
			_, err := holdsMote(u.dataDir)
			return err
		},
			func(p datadir.Paths) string { return p.Records()[0] }},
		{"whose the kubeconfig is", (*uninstaller).removeOutside,
			func(p datadir.Paths) string { return filepath.Join(p.TLS(), "ca.crt") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, _, kubeconfig := machine(t)
			looped(t, test.path(datadir.At(u.dataDir)))
			if err := test.run(u); !errors.Is(err, unix.ELOOP) {
				t.Errorf("error is %v, want the one of looking", err)
			}
			if _, err := os.Stat(kubeconfig); err != nil {
				t.Errorf("the kubeconfig: %v", err)
			}
		})
	}
}

// An uninstall that was interrupted after the authority had gone finds a kubeconfig only if another
// mote has written it since.
func TestUninstaller_RemoveOutside_WithoutAuthority(t *testing.T) {
	u, out, kubeconfig := machine(t)
	if err := os.RemoveAll(datadir.At(u.dataDir).Server()); err != nil {
		t.Fatal(err)
	}
	if err := u.removeOutside(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kubeconfig); err != nil || !strings.Contains(out.String(), "left "+kubeconfig) {
		t.Errorf("kubeconfig: %v; says %q", err, out.String())
	}
}

// A kubelet whose queue of connections is full is there all the same.
func TestRemoveDevicePlugins_BusyKubelet(t *testing.T) {
	home := filepath.Join(shortDir(t), "kubelet")
	socket := filepath.Join(home, "device-plugins", "kubelet.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: socket}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for {
		c, err := net.Dial("unix", socket)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if err := removeDevicePlugins(home); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the busy kubelet's socket: %v", err)
	}
}

// A folder that is there and is not mote's is a mistake; none is nothing to do. Either way nothing
// of the machine is touched: pods and rules that are there are another mote's, such as a
// container's.
func TestHoldsMote(t *testing.T) {
	dir := t.TempDir()
	empty, foreign := filepath.Join(dir, "empty"), filepath.Join(dir, "foreign")
	if err := errors.Join(os.Mkdir(empty, 0o755), os.Mkdir(foreign, 0o755)); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(foreign, "notes"), "mine")
	u, _, _ := machine(t)
	for _, test := range []struct {
		name, path    string
		want, refused bool
	}{
		{"mote's", u.dataDir, true, false},
		{"not there", filepath.Join(dir, "gone"), false, false},
		{"empty", empty, false, false},
		{"with other things", foreign, false, true},
	} {
		got, err := holdsMote(test.path)
		if got != test.want || (err != nil) != test.refused {
			t.Errorf("%s: %v, %v", test.name, got, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the command needs root")
	}
	for _, path := range []string{filepath.Join(dir, "gone"), empty} {
		var out bytes.Buffer
		p := program{stdout: &out, stderr: &out, lookupEnv: func(string) (string, bool) { return "", false }}
		code := p.run(t.Context(), []string{"mote", "uninstall", "--data-dir", path, "--yes"})
		says := out.String()
		if code != 0 || !strings.HasPrefix(says, "nothing to uninstall: ") || !strings.Contains(says, path) {
			t.Errorf("exit code %d, says %q", code, says)
		}
	}
	if left := list(t, dir); strings.Join(left, " ") != "empty foreign foreign/notes" {
		t.Errorf("left %v", left)
	}
}

// A pod's memory is unmounted, and no link of the user's removed, wherever on the way a link is.
func TestUninstaller_ThroughLinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Setenv("HOME", t.TempDir())
	for _, test := range []struct {
		name string
		// link makes links for a data folder that is at real, and returns what it was given as.
		link func(t *testing.T, real string) (given string)
		// left is what stays beside and in the folder above the data folder.
		left string
		says string
	}{
		{"none", func(_ *testing.T, real string) string { return real }, "", "removed "},
		{"the folder is a link", func(t *testing.T, real string) string {
			link := filepath.Join(filepath.Dir(real), "link")
			symlink(t, real, link)
			return link
		}, "data link", "mote made neither"},
		{"a link to a link", func(t *testing.T, real string) string {
			link := filepath.Join(filepath.Dir(real), "link")
			symlink(t, real, link+"2")
			symlink(t, "link2", link)
			return link
		}, "data link link2", "mote made neither"},
		{"behind a link", func(t *testing.T, real string) string {
			link := filepath.Join(t.TempDir(), "above")
			symlink(t, filepath.Dir(real), link)
			return filepath.Join(link, filepath.Base(real))
		}, "", "removed "},
		{"the kubelet's folder on another disk", func(t *testing.T, real string) string {
			elsewhere := filepath.Join(filepath.Dir(real), "disk")
			kubelet := datadir.At(real).Agent().Kubelet()
			if err := os.Rename(kubelet, elsewhere); err != nil {
				t.Fatal(err)
			}
			symlink(t, elsewhere, kubelet)
			writeFile(t, filepath.Join(filepath.Dir(real), "mine"), "mine")
			symlink(t, filepath.Join(filepath.Dir(real), "mine"), filepath.Join(elsewhere, "link"))
			return real
		}, "disk mine", "removed "},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, out, _ := machine(t)
			given := test.link(t, u.dataDir)
			real, err := datadir.Resolve(given)
			if err != nil || real != u.dataDir {
				t.Fatalf("%s is %s, %v; want %s", given, real, err, u.dataDir)
			}
			if u.links, err = linksTo(u.dataDir, given); err != nil {
				t.Fatal(err)
			}
			secret := filepath.Join(datadir.At(given).Agent().Pods(), "uid1/volumes/kubernetes.io~secret/token")
			if err := os.MkdirAll(secret, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("none", secret, "tmpfs", 0, ""); err != nil {
				t.Skipf("no mounts here: %v", err)
			}
			mounted, err := filepath.EvalSymlinks(secret)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
			finish(t, u)
			if is, err := mountinfo.Mounted(mounted); is || err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a pod's memory is still mounted: %v", err)
			}
			if len(u.left) != 0 {
				t.Errorf("says that it left %v", u.left)
			}
			u.report()
			if left := strings.Join(list(t, filepath.Dir(u.dataDir)), " "); left != test.left {
				t.Errorf("left %q, want %q", left, test.left)
			}
			if !strings.Contains(out.String(), test.says) {
				t.Errorf("says %q, want %q", out.String(), test.says)
			}
		})
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}
