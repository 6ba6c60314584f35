//go:build linux

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The sandbox's network: one interface to a second namespace that plays the rest of the world, and
// in which hosts may be plugged in beside the sandbox. 192.168.77.0/24 exists nowhere else.
const (
	// HostIP is the sandbox's address on its only network.
	HostIP = "192.168.77.2"
	// OutsideIP is the gateway, the name server, and without hosts the only other machine on that
	// network.
	OutsideIP = "192.168.77.1"
	// HostIP6 and OutsideIP6 are the same two's where a host has IPv6, in fd77::/64.
	HostIP6, OutsideIP6 = "fd77::2", "fd77::1"
	// OutsideNetns names the network namespace of that other machine, under /run/netns.
	OutsideNetns = "outside"
	// Hostname is the sandbox's.
	Hostname = "sandbox"
	// bridge is the switch that sandbox and hosts are plugged into; it stands in OutsideNetns and
	// has the address OutsideIP.
	bridge = "lan"
)

// layersDir holds the upper halves of the overlays: exactly what was written since the sandbox
// began.
const layersDir = "/run/sandbox-layers"

// privateDirs are host folders the sandbox sees, but whose changes stay in it.
var privateDirs = []string{"/etc", "/opt", "/usr", "/var"}

// machine is what the sandbox and a host in it differ in when they are furnished.
type machine struct {
	hostname string
	layers   string // folder for the upper halves of its overlays
	disk     string // what it has in the place of Dir; empty to see all of that
}

// furnish runs in the new namespaces, before anything else does.
func (m machine) furnish() error {
	groups, err := hierarchies()
	if err != nil {
		return err
	}
	shared := rootIsShared()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, step := range []struct{ kind, target, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""}, // shows the interfaces of the namespace it was mounted in
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/dev/shm", "mode=1777"},
	} {
		// Or it and what is mounted below it would still be listed, out of sight. Where nothing is
		// mounted, nothing hides.
		_ = syscall.Unmount(step.target, syscall.MNT_DETACH)
		if err := syscall.Mount(step.kind, step.target, step.kind, 0, step.data); err != nil {
			return fmt.Errorf("mount %s: %w", step.target, err)
		}
	}
	if err := remountCgroups(groups); err != nil {
		return err
	}
	if err := m.overlay(); err != nil {
		return err
	}
	if err := ownSettings(); err != nil {
		return err
	}
	// Some hosts link it to a file under /run, which is not there now.
	if err := os.Remove("/etc/resolv.conf"); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("replace resolv.conf: %w", err)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+OutsideIP+"\n"), 0o644); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	if err := syscall.Sethostname([]byte(m.hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if m.disk != "" {
		if err := syscall.Mount(m.disk, Dir(), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount disk: %w", err)
		}
	}
	if shared {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
			return fmt.Errorf("make mounts shared: %w", err)
		}
	}
	return run("ip", "link", "set", "lo", "up")
}

func (m machine) overlay() error {
	for _, dir := range privateDirs {
		name := filepath.Join(m.layers, filepath.Base(dir))
		upper, work := name+"/upper", name+"/work"
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("make overlay folder: %w", err)
			}
		}
		data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := syscall.Mount("overlay", dir, "overlay", 0, data); err != nil {
			return fmt.Errorf("mount overlay on %s: %w", dir, err)
		}
	}
	return nil
}

// kernelSettings are those below /proc/sys that a kubelet changes and that a kernel has once, for
// all of its namespaces.
var kernelSettings = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes",
}

// ownSettings has ordinary files in the places of kernelSettings, so that the machine keeps its
// own.
func ownSettings() error {
	for _, name := range kernelSettings {
		setting := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(setting)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read kernel setting: %w", err)
		}
		file := filepath.Join(layersDir, "settings", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("make folder of kernel settings: %w", err)
		}
		if err := os.WriteFile(file, value, 0o644); err != nil {
			return fmt.Errorf("copy kernel setting: %w", err)
		}
		if err := syscall.Mount(file, setting, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover kernel setting %s: %w", name, err)
		}
	}
	return nil
}

// connect gives the sandbox its network: a cable to a switch in the rest of the world.
func connect() error {
	if err := runAll(
		"ip netns add "+OutsideNetns,
		"ip -n "+OutsideNetns+" link set lo up",
		"ip -n "+OutsideNetns+" link add "+bridge+" type bridge",
		"ip -n "+OutsideNetns+" link set "+bridge+" addrgenmode none",
		"ip -n "+OutsideNetns+" addr add "+OutsideIP+"/24 dev "+bridge,
		"ip -n "+OutsideNetns+" link set "+bridge+" up",
		"ip link add eth0 type veth peer name sandbox netns "+OutsideNetns,
		// Link-local addresses come by themselves, at a time of their own, and would look like
		// something a test left.
		"ip link set eth0 addrgenmode none",
		"ip addr add "+HostIP+"/24 dev eth0",
		"ip link set eth0 up",
		"ip -n "+OutsideNetns+" link set sandbox master "+bridge+" up",
		"ip route add default via "+OutsideIP,
	); err != nil {
		return err
	}
	return switchOnly()
}

// switchOnly keeps the packet filter away from what merely crosses the switch. Without these
// settings it has no say anyway.
func switchOnly() error {
	const script = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done"
	return run("ip", "netns", "exec", OutsideNetns, "sh", "-c", script)
}

func rootIsShared() bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 6 && f[4] == "/" && strings.HasPrefix(f[6], "shared:") {
			return true
		}
	}
	return false
}
