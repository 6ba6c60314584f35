//go:build linux

package sandbox

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Snapshot is what exists in the sandbox, by kind, each kind a sorted list.
type Snapshot map[string][]string

// The kinds of a Snapshot.
const (
	Processes  = "process"
	Mounts     = "mount"
	Interfaces = "interface"
	Namespaces = "network namespace"
	Cgroups    = "cgroup"
	Rules      = "packet filter rule"
	Routing    = "route or routing rule"
	Files      = "file"
	Removed    = "removed file" // one of the host's that the sandbox does not have any more
)

// Take lists everything in the sandbox that a cluster might leave behind: in folders of the host
// only what was made or changed since the sandbox began, in dirs everything.
func Take(dirs ...string) (Snapshot, error) {
	s := Snapshot{}
	for _, p := range processes() {
		s[Processes] = append(s[Processes], p.command)
	}
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	s[Mounts] = mounts
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		s[Interfaces] = append(s[Interfaces], l.Name)
	}
	// No folder means no namespaces.
	spaces, _ := os.ReadDir("/run/netns")
	for _, n := range spaces {
		s[Namespaces] = append(s[Namespaces], n.Name())
	}
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range trees {
		s[Cgroups] = append(s[Cgroups], cgroupsBelow(h.mountPoint)...)
	}
	for _, tool := range []string{"nft list ruleset", "iptables-legacy-save", "ip6tables-legacy-save"} {
		s[Rules] = append(s[Rules], ruleLines(tool)...)
	}
	for _, tool := range []string{"ip route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule"} {
		s[Routing] = append(s[Routing], outputLines(tool)...)
	}
	for _, d := range privateDirs {
		upper := filepath.Join(layersDir, filepath.Base(d), "upper")
		for _, f := range filesBelow(upper) {
			if kind := kindInUpper(f); kind != "" {
				s[kind] = append(s[kind], d+strings.TrimPrefix(f, upper))
			}
		}
	}
	for _, d := range append([]string{"/run"}, dirs...) {
		s[Files] = append(s[Files], filesBelow(d)...)
	}
	for kind := range s {
		slices.Sort(s[kind])
	}
	return s, nil
}

// Added lists what is in now and not in s, one line each, with its kind.
func (s Snapshot) Added(now Snapshot) []string {
	var added []string
	for _, kind := range []string{Processes, Mounts, Interfaces, Namespaces, Cgroups, Rules, Routing, Files, Removed} {
		before := map[string]int{}
		for _, item := range s[kind] {
			before[item]++
		}
		for _, item := range now[kind] {
			if before[item]--; before[item] < 0 {
				added = append(added, kind+": "+item)
			}
		}
	}
	return added
}

type process struct {
	pid     int
	command string
}

// FindProcesses lists those of the sandbox, of its hosts and of the containers, whose command line
// is one of these.
func FindProcesses(which func(command string) bool) []int {
	var pids []int
	for _, p := range processes() {
		if which(p.command) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// processes lists the sandbox's, without its first, the one asking, and threads of the kernel.
func processes() []process {
	var list []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		// A process that ends while it is looked at was not there.
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil || bytes.Contains(status, []byte(") Z ")) {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		list = append(list,
			process{pid: pid, command: strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))})
	}
	return list
}

// mountPoints lists targets in the order they were mounted.
func mountPoints() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			list = append(list, f[4])
		}
	}
	return list, nil
}

// ruleLines is outputLines without what says nothing of its own: comments, counters, closing
// braces, empty built-in chains.
func ruleLines(command string) []string {
	var list []string
	for _, l := range outputLines(command) {
		if strings.HasPrefix(l, "#") || strings.HasPrefix(l, ":") || l == "}" || l == "COMMIT" ||
			strings.HasPrefix(l, "*") {
			continue
		}
		list = append(list, l)
	}
	return list
}

// outputLines is empty where the tool is missing: then nothing made with it can be there.
func outputLines(command string) []string {
	words := strings.Fields(command)
	out, _ := exec.Command(words[0], words[1:]...).Output()
	var list []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

// kindInUpper says what a path in the upper half of an overlay stands for. A folder that the lower
// half has too was not made: it came up because something was written in it, and the kernel marks
// it with its origin. What was removed is covered by a device that is none. Source: Linux,
// Documentation/filesystems/overlayfs.rst.
func kindInUpper(path string) string {
	var info unix.Stat_t
	if err := unix.Lstat(path, &info); err != nil {
		return "" // gone meanwhile
	}
	switch info.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		if info.Rdev == 0 {
			return Removed
		}
	case unix.S_IFDIR:
		if _, err := unix.Lgetxattr(path, "trusted.overlay.origin", nil); err == nil {
			return ""
		}
	}
	return Files
}

// filesBelow lists files and folders, but nothing on other file systems mounted there.
func filesBelow(dir string) []string {
	var list []string
	top, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return nil
		}
		if path == layersDir {
			return filepath.SkipDir
		}
		list = append(list, path)
		if info, err := d.Info(); err == nil && d.IsDir() &&
			info.Sys().(*syscall.Stat_t).Dev != top.Sys().(*syscall.Stat_t).Dev {
			return filepath.SkipDir
		}
		return nil
	})
	return list
}
