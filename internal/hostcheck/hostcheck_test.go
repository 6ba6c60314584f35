package hostcheck

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/hostnets"
)

// fakeHost is a host on which all is well, until a test changes it.
type fakeHost struct {
	files      map[string]string
	readErrs   map[string]error
	moduleErr  error
	countErr   error
	uid        int
	caps       uint64
	release    string
	dirErr     error
	overlayErr error
	copiesErr  error
	locksErr   error
	fileSystem string
	free       uint64
	inodes     uint64
	linkErrs   map[string]error
	nftErr     error
	iptErr     error
	writeErr   error
	modules    []string
	listenErr  map[string]error
	owner      string
	inotify    int
	inotifyErr error
	networks   []hostnets.Use
	now        time.Time
}

func goodHost() *fakeHost {
	return &fakeHost{
		files: map[string]string{
			"/sys/fs/cgroup/cgroup.controllers":            "cpuset cpu io memory hugetlb pids rdma\n",
			"/proc/self/mountinfo":                         "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n",
			"/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
			"/proc/sys/net/ipv4/ip_forward":                "1\n",
			"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "0\n",
			"/proc/sys/net/ipv6/conf/default/disable_ipv6": "0\n",
			"/proc/sys/net/ipv6/conf/all/forwarding":       "1\n",
			"/proc/sys/net/netfilter/nf_conntrack_max":     "65536\n",
			"/proc/sys/kernel/seccomp/actions_avail":       "kill allow\n",
			"/proc/sys/fs/inotify/max_user_instances":      "8192\n",
			"/proc/sys/fs/inotify/max_user_watches":        "524288\n",
			"/proc/sys/kernel/random/entropy_avail":        "256\n",
			"/etc/resolv.conf":                             "nameserver 192.0.2.1\n",
			"/proc/swaps":                                  "Filename Type Size Used Priority\n",
			"/proc/meminfo":                                "MemTotal:        4000000 kB\nMemFree: 1 kB\n",
			"/dev/kmsg":                                    "",
		},
		caps:       ^uint64(0),
		release:    "6.1.0-18-amd64",
		fileSystem: "ext4",
		free:       50 << 30,
		inodes:     1_000_000,
		now:        time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func (f *fakeHost) ReadFile(path string) ([]byte, error) {
	if err := f.readErrs[path]; err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if data, ok := f.files[path]; ok {
		return []byte(data), nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}
func (f *fakeHost) Exists(path string) (bool, error) {
	_, ok := f.files[path]
	return ok, f.readErrs[path]
}
func (f *fakeHost) Writable(string) error               { return f.writeErr }
func (f *fakeHost) UID() int                            { return f.uid }
func (f *fakeHost) Capabilities() (uint64, error)       { return f.caps, nil }
func (f *fakeHost) KernelRelease() (string, error)      { return f.release, nil }
func (f *fakeHost) TryDir(string) error                 { return f.dirErr }
func (f *fakeHost) TryOverlay(string) error             { return f.overlayErr }
func (f *fakeHost) TryCopies(string) error              { return f.copiesErr }
func (f *fakeHost) TryLocks(string) error               { return f.locksErr }
func (f *fakeHost) FileSystem(string) string            { return f.fileSystem }
func (f *fakeHost) Free(string) (uint64, uint64, error) { return f.free, f.inodes, nil }
func (f *fakeHost) TryLinks(...string) map[string]error { return f.linkErrs }
func (f *fakeHost) TryNFTables() error                  { return f.nftErr }
func (f *fakeHost) TryIPTables() error                  { return f.iptErr }
func (f *fakeHost) TryModule(name string) error {
	switch {
	case f.moduleErr != nil:
		return f.moduleErr
	case !slices.Contains(f.modules, name):
		return lack{errors.New("no such module")}
	}
	return nil
}
func (f *fakeHost) TryListen(address string) error { return f.listenErr[address] }
func (f *fakeHost) PortOwner(string) string        { return f.owner }
func (f *fakeHost) InotifyInUse() (int, error)     { return f.inotify, f.countErr }
func (f *fakeHost) TryInotify(int) error           { return f.inotifyErr }
func (f *fakeHost) Networks(hostnets.Own) ([]hostnets.Use, error) {
	return f.networks, nil
}
func (f *fakeHost) Now() time.Time { return f.now }

var options = Options{
	DataDir: "/var/lib/mote",
	Node:    true,
	IPv6:    true,
	Ports:   []Port{{Address: ":6443", Purpose: "the API server", Setting: "--https-listen-port"}},
}

func find(t *testing.T, results []Result, name string) Result {
	t.Helper()
	for _, r := range results {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no result %q in %v", name, results)
	return Result{}
}

func TestRun_GoodHost(t *testing.T) {
	for _, r := range Run(goodHost(), options) {
		if r.Level != OK || r.Remedy != "" || r.Found == "" {
			t.Errorf("%+v, want ok", r)
		}
	}
}

// What a full disk would make of a first start is one thing. A machine that comes back after a
// power cut has its cluster, which ran on with no byte left.
func TestRun_FullDisk_ExistingStarts(t *testing.T) {
	o := options
	o.Existing = true
	for _, test := range []struct {
		name   string
		change func(*fakeHost)
		urgent bool
	}{
		{"below what a first start needs", func(h *fakeHost) { h.free = 255 << 20 }, true},
		{"nothing", func(h *fakeHost) {
			h.free, h.dirErr, h.overlayErr, h.locksErr = 0, unix.ENOSPC, unix.ENOSPC, unix.ENOSPC
		}, true},
		{"no more than the user's share", func(h *fakeHost) { h.free, h.dirErr = 0, unix.EDQUOT }, true},
		{"no inodes", func(h *fakeHost) { h.inodes, h.dirErr, h.overlayErr = 1, unix.ENOSPC, unix.ENOSPC }, false},
		{"no inodes, and images are copied", func(h *fakeHost) {
			h.inodes, h.overlayErr, h.copiesErr = 1, unix.EINVAL, unix.ENOSPC
		}, false},
		{"enough", func(*fakeHost) {}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := goodHost()
			test.change(h)
			results := Run(h, o)
			if err := Faults(results); err != nil {
				t.Errorf("refused: %v", err)
			}
			disk := find(t, results, "disk")
			if disk.Urgent != test.urgent {
				t.Errorf("%+v, want an urgent warning: %v", disk, test.urgent)
			}
			if disk.Urgent && (disk.Level != Warn || !strings.Contains(disk.Remedy, "256 MiB")) {
				t.Errorf("%+v, want a warning that says how much to free", disk)
			}
		})
	}
}

func TestRun_Faults(t *testing.T) {
	const errNo = unix.EOPNOTSUPP
	const cgroupV1 = "22 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n" +
		"31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n" +
		"33 30 0:35 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n34 30 0:32 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n" +
		"35 30 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
	for _, test := range []struct {
		name   string
		change func(*fakeHost)
		check  string
		level  Level
		want   string
	}{
		{"not root", func(h *fakeHost) { h.uid = 1000 }, "root", Fail, "sudo"},
		{"no admin capability", func(h *fakeHost) { h.caps &^= 1 << unix.CAP_SYS_ADMIN }, "capabilities", Fail,
			"privileged"},
		{"no resource capability", func(h *fakeHost) { h.caps &^= 1 << unix.CAP_SYS_RESOURCE }, "capabilities", Warn,
			"CAP_SYS_RESOURCE"},
		{"ancient kernel", func(h *fakeHost) { h.release = "3.10.0-1160" }, "kernel", Fail, "4.19"},
		{"old kernel", func(h *fakeHost) { h.release = "5.4.0" }, "kernel", Warn, "iptables"},
		{"read-only", func(h *fakeHost) { h.dirErr = unix.EROFS }, "data-dir", Fail, "read-only file system"},
		// The node's runtime copies images there, and says so.
		{"no overlay", func(h *fakeHost) { h.overlayErr, h.fileSystem = unix.EINVAL, "overlayfs" }, "overlayfs", Warn,
			"lies on overlayfs, where overlayfs does not work (invalid argument): give a --data-dir on ext4"},
		{"no overlay in the kernel", func(h *fakeHost) { h.overlayErr = unix.ENODEV }, "overlayfs", Warn, "are copied"},
		{"an overlay that is read-only", func(h *fakeHost) { h.overlayErr = errReadOnlyOverlay }, "overlayfs", Warn,
			"are copied"},
		{"a disk that is read-only", func(h *fakeHost) { h.overlayErr = unix.EROFS }, "overlayfs", Fail, "read-only"},
		{"neither overlay nor copies", func(h *fakeHost) {
			h.overlayErr, h.copiesErr, h.fileSystem = unix.EINVAL, unix.EPERM, "vfat"
		}, "overlayfs", Fail, "vfat, where overlayfs does not work (invalid argument), and images cannot be copied"},
		{"a disk that fails", func(h *fakeHost) { h.overlayErr = unix.EIO }, "overlayfs", Fail, "input/output error"},
		{"no locks", func(h *fakeHost) { h.locksErr, h.fileSystem = unix.ENOLCK, "nfs" }, "locks", Fail,
			"files on nfs of data-dir /var/lib/mote cannot be locked"},
		{"on another machine's disk", func(h *fakeHost) { h.fileSystem = "nfs" }, "locks", Warn,
			"waits for the file server"},
		{"on another machine's disk, with locks of this one", func(h *fakeHost) {
			h.fileSystem = "nfs"
			h.files["/proc/self/mountinfo"] = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n" +
				"2 1 0:9 / /var/lib rw - nfs4 s:/x rw,vers=4.2,local_lock=none\n" +
				"3 2 0:9 /m /var/lib/mote rw - nfs s:/x rw,vers=3,nolock,local_lock=all\n" +
				"4 2 0:9 /m /var/lib/mote2 rw - nfs s:/x rw\n"
		}, "locks", Warn, "is mounted with nolock: locks hold on this machine alone"},
		{"no cgroups", func(h *fakeHost) { delete(h.files, "/sys/fs/cgroup/cgroup.controllers") }, "cgroups", Fail,
			"mount cgroup2"},
		{"v2 without memory", func(h *fakeHost) { h.files["/sys/fs/cgroup/cgroup.controllers"] = "cpuset cpu pids" },
			"cgroups", Fail, "cgroup_enable=memory"},
		{"v1 without memory", func(h *fakeHost) {
			delete(h.files, "/sys/fs/cgroup/cgroup.controllers")
			h.files["/proc/self/mountinfo"] = cgroupV1
		}, "cgroups", Fail, "cgroup_enable=memory"},
		{"v1", func(h *fakeHost) {
			delete(h.files, "/sys/fs/cgroup/cgroup.controllers")
			h.files["/proc/self/mountinfo"] = cgroupV1 +
				"36 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		}, "cgroups", Warn, "version 1"},
		{"no bridge", func(h *fakeHost) { h.linkErrs = map[string]error{"bridge": errNo} }, "bridge", Fail,
			"module (bridge)"},
		{"no veth", func(h *fakeHost) { h.linkErrs = map[string]error{"veth": errNo} }, "veth", Fail, "module (veth)"},
		{"no vxlan", func(h *fakeHost) { h.linkErrs = map[string]error{"vxlan": errNo} }, "vxlan", Warn,
			"second machine"},
		{"no nftables", func(h *fakeHost) { h.nftErr = errNo }, "packet filter", Warn, "install nftables"},
		{"no packet filter", func(h *fakeHost) { h.nftErr, h.iptErr = errNo, errNo }, "packet filter", Fail, "install"},
		{"no br_netfilter", func(h *fakeHost) { delete(h.files, "/proc/sys/net/bridge/bridge-nf-call-iptables") },
			"br_netfilter", Warn, "modprobe br_netfilter"},
		{"br_netfilter is a module", func(h *fakeHost) {
			delete(h.files, "/proc/sys/net/bridge/bridge-nf-call-iptables")
			h.modules = []string{"br_netfilter"}
		}, "br_netfilter", OK, "will be"},
		{"forwarding off", func(h *fakeHost) { h.files["/proc/sys/net/ipv4/ip_forward"] = "0\n" }, "ip_forward", OK,
			"can be set"},
		{"forwarding fixed",
			func(h *fakeHost) { h.files["/proc/sys/net/ipv4/ip_forward"], h.writeErr = "0\n", unix.EROFS },
			"ip_forward", Fail, "sysctl -w"},
		{"no IPv6", func(h *fakeHost) { delete(h.files, "/proc/sys/net/ipv6/conf/all/disable_ipv6") }, "ipv6", Fail,
			"ipv6.disable=1"},
		{"IPv6 switched off", func(h *fakeHost) { h.files["/proc/sys/net/ipv6/conf/all/disable_ipv6"] = "1\n" }, "ipv6",
			Fail, "sysctl -w net.ipv6.conf.all.disable_ipv6=0"},
		{"IPv6 switched off for new interfaces",
			func(h *fakeHost) { h.files["/proc/sys/net/ipv6/conf/default/disable_ipv6"] = "1\n" }, "ipv6", Fail,
			"sysctl -w net.ipv6.conf.default.disable_ipv6=0"},
		{"resolver on loopback", func(h *fakeHost) { h.files["/etc/resolv.conf"] = "nameserver 127.0.0.1\n" },
			"resolvers", Warn, "only on loopback (127.0.0.1)"},
		{"resolver on IPv6 loopback", func(h *fakeHost) { h.files["/etc/resolv.conf"] = "nameserver ::1\n" },
			"resolvers", Warn, "--resolv-conf"},
		{"systemd's stub, resolvers in its own file", func(h *fakeHost) {
			h.files["/etc/resolv.conf"] = "nameserver 127.0.0.53\n"
			h.files["/run/systemd/resolve/resolv.conf"] = "nameserver 192.0.2.53\n"
		}, "resolvers", OK, "192.0.2.53"},
		{"systemd's stub and no other file",
			func(h *fakeHost) { h.files["/etc/resolv.conf"] = "nameserver 127.0.0.53\n" }, "resolvers", Warn,
			"127.0.0.53"},
		{"no resolv.conf", func(h *fakeHost) { delete(h.files, "/etc/resolv.conf") }, "resolvers", OK, "none yet"},
		{"IPv6 forwarding off", func(h *fakeHost) { h.files["/proc/sys/net/ipv6/conf/all/forwarding"] = "0\n" }, "ipv6",
			OK, "can be set"},
		{"IPv6 forwarding fixed", func(h *fakeHost) {
			h.files["/proc/sys/net/ipv6/conf/all/forwarding"], h.writeErr = "0\n", unix.EROFS
		}, "ipv6", Fail, "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"no conntrack", func(h *fakeHost) { delete(h.files, "/proc/sys/net/netfilter/nf_conntrack_max") }, "conntrack",
			Warn, "nf_conntrack"},
		{"conntrack is a module", func(h *fakeHost) {
			delete(h.files, "/proc/sys/net/netfilter/nf_conntrack_max")
			h.modules = []string{"nf_conntrack"}
		}, "conntrack", OK, "comes with"},
		{"no kmsg", func(h *fakeHost) { delete(h.files, "/dev/kmsg") }, "/dev/kmsg", Fail, "--device"},
		{"no seccomp", func(h *fakeHost) { delete(h.files, "/proc/sys/kernel/seccomp/actions_avail") }, "seccomp", Warn,
			"CONFIG_SECCOMP_FILTER"},
		{"private root",
			func(h *fakeHost) { h.files["/proc/self/mountinfo"] = "22 1 8:1 / / rw,relatime - ext4 /dev/root rw\n" },
			"mounts", Warn, "make-rshared"},
		{"no inotify instance is left",
			func(h *fakeHost) { h.inotifyErr = os.NewSyscallError("inotify_init", unix.EMFILE) },
			"inotify", Fail, "too many open files: run `sysctl -w fs.inotify.max_user_instances="},
		{"no file is left in the system",
			func(h *fakeHost) { h.inotifyErr = os.NewSyscallError("inotify_init", unix.ENFILE) },
			"inotify", Fail, "run `sysctl -w fs.file-max="},
		{"no inotify watch is left",
			func(h *fakeHost) { h.inotifyErr = os.NewSyscallError("inotify_add_watch", unix.ENOSPC) },
			"inotify", Fail, "no space left on device: run `sysctl -w fs.inotify.max_user_watches="},
		{"a kernel without inotify",
			func(h *fakeHost) { h.inotifyErr = os.NewSyscallError("inotify_init", unix.ENOSYS) },
			"inotify", Warn, "CONFIG_INOTIFY_USER"},
		{"few inotify instances",
			func(h *fakeHost) { h.files["/proc/sys/fs/inotify/max_user_instances"], h.inotify = "128\n", 30 },
			"inotify", Warn,
			"30 of 128 instances are in use, mote takes about 20, and pods that watch files one or more each: run `sysctl -w fs.inotify.max_user_instances=512`, and write that into /etc/sysctl.d/90-mote.conf for the next boot"},
		{"no inotify instances for mote",
			func(h *fakeHost) { h.files["/proc/sys/fs/inotify/max_user_instances"], h.inotify = "128\n", 120 },
			"inotify", Warn,
			"120 of 128 instances are in use and mote takes about 20: it, or a pod, will say `too many open files`"},
		{"many inotify instances in use",
			func(h *fakeHost) { h.files["/proc/sys/fs/inotify/max_user_instances"], h.inotify = "1024\n", 1000 },
			"inotify", Warn, "fs.inotify.max_user_instances=2048"},
		{"few inotify watches", func(h *fakeHost) { h.files["/proc/sys/fs/inotify/max_user_watches"] = "8192\n" },
			"inotify", Warn, "sysctl -w fs.inotify.max_user_watches=65536"},
		{"swap", func(h *fakeHost) { h.files["/proc/swaps"] += "/dev/sda2 partition 1 0 -2\n" }, "swap", Warn,
			"swapoff"},
		{"little memory", func(h *fakeHost) { h.files["/proc/meminfo"] = "MemTotal: 262144 kB\n" }, "memory", Warn,
			"256 MiB"},
		{"disk low", func(h *fakeHost) { h.free = 1 << 30 }, "disk", Warn, "1024 MiB"},
		{"disk full", func(h *fakeHost) { h.free = 1 << 20 }, "disk", Fail, "another disk"},
		{"no room for a file", func(h *fakeHost) { h.dirErr = unix.ENOSPC }, "data-dir", Fail,
			"cannot be written: no space left on device: free 256 MiB"},
		{"inodes low", func(h *fakeHost) { h.inodes = 10 }, "disk", Warn, "10 inodes"},
		{"inodes not counted", func(h *fakeHost) { h.inodes = 0 }, "disk", OK, "free"},
		{"clock in 1970", func(h *fakeHost) { h.now = time.Unix(60, 0) }, "clock", Warn, "1970"},
		{"no entropy", func(h *fakeHost) { h.files["/proc/sys/kernel/random/entropy_avail"] = "12\n" }, "entropy", Warn,
			"12 bits"},
		{"port taken by a known process", func(h *fakeHost) {
			h.listenErr, h.owner = map[string]error{":6443": unix.EADDRINUSE}, "nginx (process 12)"
		}, "port 6443", Fail,
			"in use by nginx (process 12): stop that program, or choose another port with --https-listen-port"},
		{"port taken by a hidden process",
			func(h *fakeHost) { h.listenErr = map[string]error{":6443": unix.EADDRINUSE} }, "port 6443", Fail,
			"cannot be told"},
		{"foreign address", func(h *fakeHost) { h.listenErr = map[string]error{":6443": unix.EADDRNOTAVAIL} },
			"port 6443", Fail, "an address of this machine"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := goodHost()
			test.change(h)
			results := Run(h, options)
			r := find(t, results, test.check)
			if r.Level != test.level {
				t.Errorf("level is %s, want %s", r.Level, test.level)
			}
			if text := r.Found + ": " + r.Remedy; !strings.Contains(text, test.want) {
				t.Errorf("%q lacks %q", text, test.want)
			}
			if (r.Remedy == "") != (r.Level == OK) {
				t.Errorf("level %s with remedy %q", r.Level, r.Remedy)
			}
			err := Faults(results)
			if (err != nil) != (test.level == Fail) {
				t.Fatalf("faults are %v", err)
			}
			if err != nil && (!errors.Is(err, ErrHost) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("fault %q is no single ErrHost", err)
			}
		})
	}
}

func TestRun_PodsWithoutIPv6_NotLookedFor(t *testing.T) {
	h, o := goodHost(), options
	o.IPv6 = false
	h.files["/proc/sys/net/ipv6/conf/all/disable_ipv6"] = "1\n"
	for _, r := range Run(h, o) {
		if r.Name == "ipv6" || r.Level != OK {
			t.Errorf("%+v of a host whose pods have IPv4 alone", r)
		}
	}
}

func TestRun_ServerAlone(t *testing.T) {
	h := goodHost()
	h.overlayErr, h.nftErr, h.iptErr, h.linkErrs = unix.EINVAL, unix.EINVAL, unix.EINVAL,
		map[string]error{"bridge": unix.EINVAL}
	delete(h.files, "/dev/kmsg")
	if err := Faults(Run(h, Options{DataDir: "/d"})); err != nil {
		t.Errorf("a server without a node needs none of this: %v", err)
	}
}

func TestRun_ResolvConf(t *testing.T) {
	o := options
	o.ResolvConf = "/etc/mote/resolv.conf"
	h := goodHost()
	if r := find(t, Run(h, o), "resolvers"); r.Level != Fail || !strings.Contains(r.Found, "/etc/mote/resolv.conf") {
		t.Errorf("a file that does not exist: %+v", r)
	}
	h.files[o.ResolvConf] = "nameserver 192.0.2.2\n"
	if r := find(t, Run(h, o), "resolvers"); r.Level != OK || r.Found != "192.0.2.2" {
		t.Errorf("a file with a resolver: %+v", r)
	}
}

// An address that is not there does not stop a start, as the network may set it later, but it is
// said at each one: the kubelet reports a node without addresses then.
func TestRun_NodeIPs_LookedForOnInterfaces(t *testing.T) {
	for _, row := range []struct {
		name  string
		ips   []string
		level Level
		found string
	}{
		{"there", []string{"192.0.2.10"}, OK, "192.0.2.10"},
		{"both families there", []string{"192.0.2.10", "2001:db8::10"}, OK, "192.0.2.10, 2001:db8::10"},
		{"another machine's", []string{"192.0.2.11"}, Warn, "no interface has 192.0.2.11"},
		{"one of two", []string{"192.0.2.10", "2001:db8::11"}, Warn, "no interface has 2001:db8::11"},
		{"only a route leads there", []string{"198.51.100.0"}, Warn, "no interface has 198.51.100.0"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, o := goodHost(), options
			h.networks = []hostnets.Use{
				{Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.10/24"), Address: true},
				{Interface: "eth0", Prefix: netip.MustParsePrefix("2001:db8::10/64"), Address: true},
				{Interface: "eth1", Prefix: netip.MustParsePrefix("198.51.100.0/24")},
			}
			for _, ip := range row.ips {
				o.NodeIPs = append(o.NodeIPs, net.ParseIP(ip))
			}
			r := find(t, Run(h, o), "node-ip")
			if r.Level != row.level || r.Found != row.found || r.Urgent != (row.level == Warn) {
				t.Errorf("%+v, want %s: %s", r, row.level, row.found)
			}
		})
	}
}

// The bridge of a mote with another data folder keeps its addresses until that is uninstalled.
func TestRun_NetworksOverlapTheClusters(t *testing.T) {
	at := func(name, text string) hostnets.Use {
		return hostnets.Use{Interface: name, Prefix: netip.MustParsePrefix(text), Address: true}
	}
	known := clusterconfig.Config{}.WithDefaults()
	for _, row := range []struct {
		name    string
		use     hostnets.Use
		cluster clusterconfig.Config
		fresh   bool
		level   Level
		want    string
	}{
		{"another mote's bridge", at("mote0", "10.42.0.1/24"), known, true, Fail, "uninstall --data-dir /var/lib/mote"},
		{"another mote's bridge, data moved", at("mote0", "10.42.0.1/24"), known, false, Fail, "ip link delete mote0"},
		{"docker's bridge", at("docker0", "10.42.0.1/16"), known, true, Fail, "another cluster-cidr"},
		{"docker's bridge, node with pods", at("docker0", "10.42.0.1/16"), known, false, Warn, "another cluster-cidr"},
		{"before joining", at("docker0", "10.42.0.1/16"), clusterconfig.Config{}, true, Warn, "another cluster-cidr"},
		{"a wide LAN", hostnets.Use{Interface: "eth0", Prefix: netip.MustParsePrefix("10.0.0.0/8")}, known, true, Warn,
			"cannot be reached"},
		{"elsewhere", at("docker0", "172.17.0.1/16"), known, true, OK, ""},
	} {
		h, o := goodHost(), options
		h.networks, o.Cluster, o.Existing = []hostnets.Use{row.use}, row.cluster, !row.fresh
		if r := find(t, Run(h, o), "networks"); r.Level != row.level || !strings.Contains(r.Remedy, row.want) {
			t.Errorf("%s: %+v, want %s and %q", row.name, r, row.level, row.want)
		}
	}
}
