//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is one mounted cgroup tree: all of version 2, or one controller (or several together)
// of version 1.
type hierarchy struct {
	mountPoint string
	version    int
	options    []string // version 1: what to mount it with
	home       string   // the group this process came from
}

// cgroups is one group of the same name in every hierarchy.
type cgroups struct {
	name string
	list []hierarchy
}

func makeCgroups(name string) (*cgroups, error) {
	list, err := hierarchies()
	if err != nil {
		return nil, err
	}
	g := &cgroups{name: name, list: list}
	for _, h := range list {
		if h.version == 2 {
			// What a controller's absence means shows in the test; there may be none here at all.
			for _, c := range []string{"+cpuset", "+cpu", "+io", "+memory", "+pids", "+hugetlb"} {
				_ = os.WriteFile(filepath.Join(h.mountPoint, "cgroup.subtree_control"), []byte(c), 0o644)
			}
		}
		dir := g.dir(h)
		if err := os.Mkdir(dir, 0o755); err != nil {
			g.remove()
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		// Version 1 lets nobody into a cpuset that has no CPUs or memory yet.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			data, err := os.ReadFile(filepath.Join(h.mountPoint, f))
			if h.version == 2 || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, f), data, 0o644)
			}
			if err != nil {
				g.remove()
				return nil, fmt.Errorf("set up cgroup: %w", err)
			}
		}
	}
	return g, nil
}

func (g *cgroups) dir(h hierarchy) string { return filepath.Join(h.mountPoint, g.name) }

func (g *cgroups) enter() error {
	for _, h := range g.list {
		if err := joinCgroup(g.dir(h), os.Getpid()); err != nil {
			return err
		}
	}
	return nil
}

func (g *cgroups) leave() error {
	var errs []error
	for _, h := range g.list {
		errs = append(errs, joinCgroup(filepath.Join(h.mountPoint, h.home), os.Getpid()))
	}
	return errors.Join(errs...)
}

// admit moves a process to where those of a machine live whose roots the groups are, see
// remountCgroups.
func (g *cgroups) admit(pid int) error {
	for _, h := range g.list {
		dir := g.dir(h)
		if onlyVersion2(g.list) {
			dir = filepath.Join(dir, membersGroup)
		}
		if err := joinCgroup(dir, pid); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes the groups, deepest first. The processes in them are gone or going: the kernel
// needs a moment after the last one was reaped.
func (g *cgroups) remove() {
	for _, h := range g.list {
		if err := RemoveCgroupTree(g.dir(h)); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox:", err)
		}
	}
}

// RemoveCgroupTree removes dir and all groups below it, waiting up to twenty seconds for processes
// that are just ending.
func RemoveCgroupTree(dir string) error {
	for end := time.Now().Add(20 * time.Second); ; {
		var busy error
		for _, d := range cgroupsBelow(dir) {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				busy = fmt.Errorf("remove cgroup: %w", err)
			}
		}
		if busy == nil || time.Now().After(end) {
			return busy
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cgroupsBelow lists dir and the groups in it, children before parents.
func cgroupsBelow(dir string) []string {
	var dirs []string
	// Groups come and go while this walks; what cannot be read is gone.
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	return dirs
}

func joinCgroup(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// hierarchies reads which cgroup trees this process sees, and where in each it is.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroups: %w", err)
	}
	homes := map[string]string{} // by controllers, as the kernel spells them; empty for version 2
	for line := range strings.Lines(string(self)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			homes[f[1]] = f[2]
		}
	}
	var list []hierarchy
	for line := range strings.Lines(string(mounts)) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			list = append(list, hierarchy{mountPoint: left[4], version: 2, home: homes[""]})
		case "cgroup":
			var options []string
			for _, o := range strings.Split(right[2], ",") {
				if o != "rw" && o != "ro" && !strings.HasPrefix(o, "release_agent=") && o != "xattr" &&
					o != "clone_children" {
					options = append(options, o)
				}
			}
			list = append(list, hierarchy{
				mountPoint: left[4],
				version:    1,
				options:    options,
				home:       homes[strings.Join(options, ",")],
			})
		}
	}
	return list, nil
}

// membersGroup holds the processes where there is only version 2: its root must be empty before
// controllers can be handed to groups below it.
const membersGroup = "test"

func onlyVersion2(list []hierarchy) bool { return len(list) == 1 && list[0].version == 2 }

// remountCgroups replaces the mounts inherited from outside by ones whose root is the sandbox's own
// group.
func remountCgroups(list []hierarchy) error {
	if onlyVersion2(list) {
		if err := syscall.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount cgroup2: %w", err)
		}
		members := filepath.Join("/sys/fs/cgroup", membersGroup)
		if err := os.Mkdir(members, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		return joinCgroup(members, os.Getpid())
	}
	if err := syscall.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount cgroup root: %w", err)
	}
	for _, h := range list {
		if err := os.MkdirAll(h.mountPoint, 0o755); err != nil {
			return fmt.Errorf("make cgroup mount point: %w", err)
		}
		kind, data := "cgroup", strings.Join(h.options, ",")
		if h.version == 2 {
			kind, data = "cgroup2", ""
		} else if strings.HasPrefix(data, "name=") {
			data = "none," + data
		}
		if err := syscall.Mount(kind, h.mountPoint, kind, 0, data); err != nil {
			return fmt.Errorf("mount %s %s: %w", kind, data, err)
		}
		if len(h.options) > 1 {
			for _, c := range h.options {
				if err := os.Symlink(filepath.Base(h.mountPoint),
					filepath.Join(filepath.Dir(h.mountPoint), c)); err != nil {
					return fmt.Errorf("link cgroup controller: %w", err)
				}
			}
		}
	}
	return nil
}
