package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Limits of inotify count for all processes of a user, and so for all pods that run as root
// together with mote. Most distributions leave 128 instances, of which a server with a node takes
// 21; who finds none left says "too many open files".
const (
	ownInotifyInstances  = 20
	wantInotifyInstances = 512
	wantInotifyWatches   = 65_536
	// spareInotifyInstances are for pods, whatever the limit is.
	spareInotifyInstances = 64
	// neededInotifyInstances are those that a node cannot do without: one for containerd's network
	// configuration, one for cgroups. The other parts try again later.
	neededInotifyInstances = 2
)

// wantedInstances is a limit that leaves room for mote and pods beside those in use.
func wantedInstances(used int) int {
	wanted := wantInotifyInstances
	for wanted < used+ownInotifyInstances+spareInotifyInstances {
		wanted *= 2
	}
	return wanted
}

func checkInotify(h Host, _ Options) []Result {
	const dir = "/proc/sys/fs/inotify/"
	if err := h.TryInotify(neededInotifyInstances); err != nil {
		if remedy := LimitRemedy(err); remedy != "" {
			return fail("inotify", fmt.Sprintf("a node needs it to watch cgroups and its network: %v", err), remedy)
		}
		return warn("inotify", fmt.Sprintf("cannot be tried: %v", err), "use a kernel with CONFIG_INOTIFY_USER")
	}
	var found, set []string
	instances, err := readInt(h, dir+"max_user_instances")
	if err != nil {
		return unknown("inotify", err)
	}
	watches, err := readInt(h, dir+"max_user_watches")
	if err != nil {
		return unknown("inotify", err)
	}
	used, err := h.InotifyInUse()
	if err != nil {
		return unknown("inotify", err)
	}
	wanted := wantedInstances(used)
	if instances < wanted {
		text := fmt.Sprintf("%d of %d instances are in use", used, instances)
		if used+ownInotifyInstances > instances {
			text += fmt.Sprintf(" and mote takes about %d: it, or a pod, will say `too many open files`",
				ownInotifyInstances)
		} else {
			text += fmt.Sprintf(", mote takes about %d, and pods that watch files one or more each",
				ownInotifyInstances)
		}
		found, set = append(found, text), append(set, fmt.Sprintf("fs.inotify.max_user_instances=%d", wanted))
	}
	if watches < wantInotifyWatches {
		found, set = append(found, fmt.Sprintf("%d watches are few for many pods", watches)),
			append(set, fmt.Sprintf("fs.inotify.max_user_watches=%d", wantInotifyWatches))
	}
	if len(set) > 0 {
		return warn("inotify", strings.Join(found, "; "), setSysctl(set...))
	}
	return ok("inotify", "limits suffice")
}

// tryInotify makes instances with a watch each, and gives them back.
func tryInotify(instances int) error {
	for range instances {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("inotify_init", err)
		}
		defer unix.Close(fd)
		if _, err := unix.InotifyAddWatch(fd, "/", unix.IN_DELETE_SELF); err != nil {
			return os.NewSyscallError("inotify_add_watch", err)
		}
	}
	return nil
}

// inotifyInUse counts the inotify instances of a user's processes. One that is inherited by several
// of them counts as often, which is rare.
func inotifyInUse(proc string, uid int) (int, error) {
	processes, err := os.ReadDir(proc)
	if err != nil {
		return 0, fmt.Errorf("count inotify instances: %w", err)
	}
	total := 0
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		info, err := p.Info()
		if err != nil {
			continue
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) == uid {
			total += inotifyOf(filepath.Join(proc, p.Name(), "fd"))
		}
	}
	return total, nil
}

// inotifyOf counts those of one process; one that has ended has none.
func inotifyOf(fds string) int {
	entries, err := os.ReadDir(fds)
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && to == "anon_inode:inotify" {
			n++
		}
	}
	return n
}
