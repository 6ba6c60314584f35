package hostcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/hostnets"
)

// toolTimeout bounds one run of nft, iptables or modprobe. The first nft of a boot loads modules,
// which takes slow machines seconds.
const toolTimeout = 30 * time.Second

// machine is the host this process runs on.
type machine struct{}

// ThisHost is the host this process runs on.
func ThisHost() Host { return machine{} }

func (machine) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (machine) Exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if err != nil && !missing(err) {
		return false, err
	}
	return err == nil, nil
}

func (machine) Writable(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return bare(err)
	}
	return f.Close()
}

func (machine) Networks(own hostnets.Own) ([]hostnets.Use, error) { return hostnets.List(own) }

func (machine) UID() int       { return os.Geteuid() }
func (machine) Now() time.Time { return time.Now() }

func (machine) Capabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

func (machine) KernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// nearest is dir, or the nearest folder above it that exists.
func nearest(dir string) string {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
	}
}

func (machine) TryDir(dir string) error {
	for above := filepath.Clean(dir); above != filepath.Dir(above); above = filepath.Dir(above) {
		if info, err := os.Stat(above); err == nil && !info.IsDir() {
			return fmt.Errorf("%s is not a folder", above)
		}
	}
	f, err := os.CreateTemp(nearest(dir), ".mote-check-*")
	if err != nil {
		return bare(err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (machine) TryOverlay(dir string) (err error) {
	temp, err := os.MkdirTemp(nearest(dir), ".mote-check-*")
	if err != nil {
		return bare(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	sub := func(name string) string { return filepath.Join(temp, name) }
	for _, name := range []string{"lower", "lower2", "upper", "work", "merged"} {
		if err := os.Mkdir(sub(name), 0o700); err != nil {
			return bare(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s", sub("lower2"), sub("lower"), sub("upper"),
		sub("work"))
	if err := unix.Mount("overlay", sub("merged"), "overlay", 0, options); err != nil {
		return err
	}
	write := os.WriteFile(filepath.Join(sub("merged"), "file"), nil, 0o600)
	if errors.Is(write, unix.EROFS) {
		// Not the disk: the folders above could be made.
		write = errReadOnlyOverlay
	}
	if err := unix.Unmount(sub("merged"), unix.MNT_DETACH); err != nil {
		return errors.Join(write, fmt.Errorf("unmount trial: %w", err))
	}
	return bare(write)
}

// fileSystems names the kinds people have data folders on.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.NFS_SUPER_MAGIC: "nfs", unix.F2FS_SUPER_MAGIC: "f2fs", unix.MSDOS_SUPER_MAGIC: "vfat",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.RAMFS_MAGIC: "ramfs",
	unix.SQUASHFS_MAGIC: "squashfs", unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs", 0x2fc12fc1: "zfs", 0x2011bab0: "exfat",
	0x7366746e: "ntfs", 0xff534d42: "cifs", 0xfe534d42: "smb",
}

func (machine) FileSystem(dir string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(nearest(dir), &s); err != nil {
		return "an unknown file system"
	}
	// The type is 32 bits wide, sign-extended on some machines.
	kind := int64(uint32(s.Type))
	if name, known := fileSystems[kind]; known {
		return name
	}
	return fmt.Sprintf("file system %#x", kind)
}

func (machine) Free(dir string) (uint64, uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(nearest(dir), &s); err != nil {
		return 0, 0, fmt.Errorf("look at file system of %s: %w", dir, err)
	}
	inodes := s.Ffree
	if s.Files > 0 {
		// None left is not the same as not counted.
		inodes = max(inodes, 1)
	}
	return s.Bavail * uint64(s.Bsize), inodes, nil
}

// inNewNetwork runs f on a thread in a network namespace of its own, which the kernel throws away
// with the thread.
func inNewNetwork(f func() error) error {
	result := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The kernel shows the first thread's namespace as the whole process's
			// (/proc/self/net). While it is held here, f runs on another one.
			defer goruntime.UnlockOSThread()
			result <- inNewNetwork(f)
			return
		}
		// Never unlocked: the thread must not be used for anything else.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func (machine) TryLinks(kinds ...string) map[string]error {
	errs := map[string]error{}
	err := inNewNetwork(func() error {
		for i, kind := range kinds {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = fmt.Sprintf("try%d", i)
			var link netlink.Link = &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
			switch kind {
			case "veth":
				link = &netlink.Veth{LinkAttrs: attrs, PeerName: attrs.Name + "p"}
			case "vxlan":
				link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}
			case "bridge":
				link = &netlink.Bridge{LinkAttrs: attrs}
			}
			if err := netlink.LinkAdd(link); err != nil {
				errs[kind] = err
			}
		}
		return nil
	})
	if err != nil {
		for _, kind := range kinds {
			errs[kind] = err
		}
	}
	return errs
}

// trialRules has one expression of each kind that kernels are built without.
const trialRules = `table ip mote-try {
	map services { type ipv4_addr . inet_proto . inet_service : verdict; }
	chain inward {
		type nat hook prerouting priority -100;
		ip daddr . meta l4proto . th dport vmap @services
		fib daddr type local ip protocol tcp dnat to 192.0.2.1:80
	}
	chain outward { type nat hook postrouting priority 100; meta mark 0x4000 masquerade; }
	chain forward { type filter hook forward priority 0; ct state new numgen random mod 2 0 reject; }
}
`

func (machine) TryNFTables() error { return tryTool(trialRules, "nft", "-f", "-") }

func (machine) TryIPTables() error {
	for _, args := range [][]string{
		{"-w", "5", "-t", "nat", "-A", "PREROUTING", "-m", "comment", "--comment", "try", "-m", "conntrack",
			"--ctstate", "NEW", "-p", "tcp", "-j", "DNAT", "--to-destination", "192.0.2.1:80"},
		{"-w", "5", "-t", "nat", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x4000", "-j", "MASQUERADE"},
	} {
		if err := tryTool("", "iptables", args...); err != nil {
			return err
		}
	}
	return nil
}

// tryTool runs a tool in a network namespace of its own.
func tryTool(input, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return lack{fmt.Errorf("%s is not installed", name)}
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	return inNewNetwork(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
		defer cancel()
		c := exec.CommandContext(ctx, path, args...)
		c.Stdin = strings.NewReader(input)
		out, err := c.CombinedOutput()
		if err == nil {
			return nil
		}
		// Only a tool that ran to its end has an opinion: not one that timed out or was killed.
		exit, ended := errors.AsType[*exec.ExitError](err)
		ended = ended && exit.Exited()
		if line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n")); ended && len(line) > 0 {
			return lack{fmt.Errorf("%s: %s", name, line)}
		}
		err = fmt.Errorf("run %s: %w", name, err)
		if ended {
			return lack{err}
		}
		return err
	})
}

func (machine) TryModule(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	err := exec.CommandContext(ctx, "modprobe", "--dry-run", "--quiet", name).Run()
	if err == nil {
		return nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() || errors.Is(err, exec.ErrNotFound) {
		return lack{fmt.Errorf("find kernel module %s: %w", name, err)}
	}
	return fmt.Errorf("find kernel module %s: %w", name, err)
}

func (machine) TryListen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return op.Err
		}
		return err
	}
	return l.Close()
}

func (machine) PortOwner(address string) string { return portOwner("/proc", address) }

func (machine) TryInotify(instances int) error { return tryInotify(instances) }

func (machine) InotifyInUse() (int, error) { return inotifyInUse("/proc", os.Geteuid()) }

func isInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// bare leaves out the path, which the message names in its own words.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
