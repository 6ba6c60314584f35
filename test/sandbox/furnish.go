//go:build linux

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The sandbox's network: one interface to a second namespace that plays the rest of the world. 192.168.77.0/24 exists nowhere else.
const (
	// HostIP is the sandbox's address on its only network.
	HostIP = "192.168.77.2"
	// OutsideIP is the gateway and the only other machine on that network.
	OutsideIP = "192.168.77.1"
	// OutsideNetns names the network namespace of that other machine, under /run/netns.
	OutsideNetns = "outside"
	// Hostname is the sandbox's.
	Hostname = "sandbox"
)

// layersDir holds the upper halves of the overlays: exactly what was written since the sandbox began.
const layersDir = "/run/sandbox-layers"

// privateDirs are host folders the sandbox sees, but whose changes stay in it.
var privateDirs = []string{"/etc", "/opt", "/usr", "/var"}

// furnish runs in the new namespaces, before anything else does.
func furnish() error {
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
	} {
		// Or it and what is mounted below it would still be listed, out of sight. Where nothing is mounted, nothing hides.
		_ = syscall.Unmount(step.target, syscall.MNT_DETACH)
		if err := syscall.Mount(step.kind, step.target, step.kind, 0, step.data); err != nil {
			return fmt.Errorf("mount %s: %w", step.target, err)
		}
	}
	if err := remountCgroups(groups); err != nil {
		return err
	}
	if err := overlayHost(); err != nil {
		return err
	}
	// Some hosts link it to a file under /run, which is not there now.
	if err := os.Remove("/etc/resolv.conf"); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("replace resolv.conf: %w", err)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver "+OutsideIP+"\n"), 0o644); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	if err := syscall.Sethostname([]byte(Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if shared {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
			return fmt.Errorf("make mounts shared: %w", err)
		}
	}
	return connect()
}

func overlayHost() error {
	for _, dir := range privateDirs {
		name := filepath.Join(layersDir, filepath.Base(dir))
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

// connect gives the sandbox its network: loopback, and a cable to the rest of the world.
func connect() error {
	for _, args := range []string{
		"link set lo up",
		"netns add " + OutsideNetns,
		"link add eth0 type veth peer name eth0 netns " + OutsideNetns,
		// Link-local addresses come by themselves, at a time of their own, and would look like something a test left.
		"link set eth0 addrgenmode none",
		"addr add " + HostIP + "/24 dev eth0",
		"link set eth0 up",
		"-n " + OutsideNetns + " addr add " + OutsideIP + "/24 dev eth0",
		"-n " + OutsideNetns + " link set eth0 up",
		"-n " + OutsideNetns + " link set lo up",
		"route add default via " + OutsideIP,
	} {
		if err := run("ip", strings.Fields(args)...); err != nil {
			return err
		}
	}
	return nil
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
