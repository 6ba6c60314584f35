package hostcheck

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/wallclock"
)

// What mote can do without little of, and what it cannot run with at all.
const (
	wantMemory  = 512 << 20
	wantSpace   = 2 << 30
	needSpace   = 256 << 20
	wantInodes  = 10_000
	wantEntropy = 128
)

func checkRoot(h Host, _ Options) []Result {
	if uid := h.UID(); uid != 0 {
		return fail("root", fmt.Sprintf("permission denied: running as user %d", uid), "use sudo")
	}
	return ok("root", "yes")
}

func checkCapabilities(h Host, o Options) []Result {
	have, err := h.Capabilities()
	if err != nil {
		return warn("capabilities", err.Error(), "run mote outside of a sandbox")
	}
	has := func(c int) bool { return have&(1<<c) != 0 }
	if o.Node && (!has(unix.CAP_SYS_ADMIN) || !has(unix.CAP_NET_ADMIN)) {
		return fail("capabilities", "CAP_SYS_ADMIN or CAP_NET_ADMIN is missing",
			"run mote on the host itself, or in a privileged container")
	}
	if o.Node && !has(unix.CAP_SYS_RESOURCE) {
		return warn("capabilities", "CAP_SYS_RESOURCE is missing",
			"nothing: mote then does not protect system pods from being killed first when memory runs out")
	}
	return ok("capabilities", "%d", bits.OnesCount64(have))
}

func checkKernel(h Host, _ Options) []Result {
	release, err := h.KernelRelease()
	if err != nil {
		return warn("kernel", err.Error(), "check that /proc is mounted")
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return ok("kernel", "%s", release)
	}
	switch {
	case major < 4 || major == 4 && minor < 19:
		return fail("kernel", release, "use Linux 4.19 or newer, better 5.13 or newer")
	case major < 5 || major == 5 && minor < 13:
		return warn("kernel", release,
			"use Linux 5.13 or newer: with an older one services go through iptables instead of nftables")
	}
	return ok("kernel", "%s", release)
}

func checkPorts(h Host, o Options) []Result {
	var results []Result
	for _, p := range o.Ports {
		name := "port " + p.Address[strings.LastIndexByte(p.Address, ':')+1:]
		if err := h.TryListen(p.Address); err != nil {
			found := fmt.Sprintf("cannot be opened for %s: %v", p.Purpose, err)
			remedy := "choose an address of this machine"
			if errno, ok := errors.AsType[unix.Errno](err); ok && !lacks(err) && !isInUse(err) &&
				errno != unix.EADDRNOTAVAIL {
				results = append(results, unknown(name, err)...)
				continue
			}
			if owner := h.PortOwner(p.Address); owner != "" {
				found, remedy = fmt.Sprintf("needed for %s, in use by %s", p.Purpose, owner), "stop that program"
			} else if isInUse(err) {
				found, remedy = fmt.Sprintf("needed for %s, in use by a process that cannot be told", p.Purpose),
					"stop it"
			}
			if p.Setting != "" {
				remedy += ", or choose another port with " + p.Setting
			}
			results = append(results, fail(name, found, remedy)...)
			continue
		}
		results = append(results, ok(name, "free for %s", p.Purpose)...)
	}
	return results
}

func checkKmsg(h Host, _ Options) []Result {
	switch there, err := h.Exists("/dev/kmsg"); {
	case err != nil:
		return unknown("/dev/kmsg", err)
	case !there:
		return fail("/dev/kmsg", "missing",
			"give it to the container mote runs in (--device /dev/kmsg): the kubelet reads kills for lack of memory "+
				"from it")
	}
	return ok("/dev/kmsg", "there")
}

func checkSeccomp(h Host, _ Options) []Result {
	switch there, err := h.Exists("/proc/sys/kernel/seccomp/actions_avail"); {
	case err != nil:
		return unknown("seccomp", err)
	case !there:
		return warn("seccomp", "not in the kernel",
			"build the kernel with CONFIG_SECCOMP_FILTER: without, pods run unfiltered")
	}
	return ok("seccomp", "works")
}

func checkPropagation(h Host, _ Options) []Result {
	data, err := h.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return unknown("mounts", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 6 && fields[4] == "/" {
			for _, f := range fields[6:] {
				if f == "-" {
					break
				}
				if strings.HasPrefix(f, "shared:") {
					return ok("mounts", "shared")
				}
			}
			return warn("mounts", "/ is not shared",
				"run `mount --make-rshared /`: without, pods cannot mount volumes for other pods (mountPropagation)")
		}
	}
	return nil
}

func checkSwap(h Host, _ Options) []Result {
	data, err := h.ReadFile("/proc/swaps")
	if err != nil && !missing(err) {
		return unknown("swap", err)
	}
	if err != nil || strings.Count(strings.TrimSpace(string(data)), "\n") == 0 {
		return ok("swap", "off")
	}
	return warn("swap", "on",
		"nothing, or `swapoff -a`: pods do not use it, but the host's own programs may become slow")
}

func checkMemory(h Host, _ Options) []Result {
	data, err := h.ReadFile("/proc/meminfo")
	if err != nil {
		return unknown("memory", err)
	}
	for line := range strings.Lines(string(data)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "MemTotal: %d kB", &kib); n == 1 {
			if kib<<10 < wantMemory {
				return warn("memory", size(kib<<10), "use a machine with "+size(wantMemory)+" or more")
			}
			return ok("memory", "%s", size(kib<<10))
		}
	}
	return nil
}

func checkClock(h Host, _ Options) []Result {
	if now := h.Now(); now.Before(wallclock.Floor) {
		return warn("clock", now.UTC().Format(time.DateTime)+" UTC",
			"set the clock, or run an NTP client: until then no machine can join, and certificates of image "+
				"registries are not valid yet")
	}
	return ok("clock", "plausible")
}

func checkEntropy(h Host, _ Options) []Result {
	n, err := readInt(h, "/proc/sys/kernel/random/entropy_avail")
	if err != nil {
		return unknown("entropy", err)
	}
	if n < wantEntropy {
		return warn("entropy", strconv.Itoa(n)+" bits",
			"wait, or run a daemon such as rngd: keys are made when the kernel has collected enough")
	}
	return ok("entropy", "enough")
}

func readInt(h Host, path string) (int, error) {
	data, err := h.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func size(n uint64) string {
	if n < 10<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d GiB", n>>30)
}
