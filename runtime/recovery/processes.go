package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
)

// process is what finding our processes needs of an entry of /proc.
type process struct {
	pid, parent int
	start       string // ticks since boot: unique together with the pid
	args        []string
}

// processes lists the running processes. One that ends meanwhile is left out.
func processes() (map[int]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[int]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			found[pid] = p
		}
	}
	return found, nil
}

func readProcess(pid int) (process, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	// The command's name is in parentheses and may contain any character.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return process{}, false
	}
	return process{
		pid:    pid,
		parent: parent,
		start:  fields[19],
		args:   strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"),
	}, true
}

// reportsTo returns the socket of the containerd that a process is a shim of, or "" if it is none.
func (p process) reportsTo() string {
	if len(p.args) == 0 || filepath.Base(p.args[0]) != bundle.Shim {
		return ""
	}
	if i := slices.Index(p.args, "-address"); i >= 0 && i+1 < len(p.args) {
		return p.args[i+1]
	}
	return ""
}

// container is runc's record of one of its containers.
type container struct {
	InitPid     int               `json:"init_process_pid"`
	InitStart   uint64            `json:"init_process_start"`
	CgroupPaths map[string]string `json:"cgroup_paths"`
}

// containers lists runc's containers. A record that cannot be read or parsed is skipped: the
// container's processes are found through its shim.
func containers(runcRoot string) ([]container, error) {
	files, err := filepath.Glob(filepath.Join(runcRoot, "*", "*", "state.json"))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var found []container
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var c container
		if json.Unmarshal(data, &c) == nil {
			found = append(found, c)
		}
	}
	return found, nil
}

// findOurs returns the processes of this data folder's pods: its shims, which are those that use
// the folder, all their descendants, and the processes in the cgroups of its containers.
func findOurs(p layout.Paths) (map[int]process, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	own, err := ownedBy(p)
	if err != nil {
		return nil, err
	}
	ours := map[int]process{}
	for _, pr := range all {
		socket := pr.reportsTo()
		if socket == "" {
			continue
		}
		switch is, err := own.uses(pr.pid, socket); {
		case err != nil:
			return nil, err
		case is:
			ours[pr.pid] = pr
		}
	}
	// A shim adopts the orphans of its containers, so all their processes are its descendants.
	for pid, pr := range descendants(all, slices.Collect(maps.Keys(ours))...) {
		ours[pid] = pr
	}
	// Containers whose shim was killed are no longer descendants of one.
	list, err := containers(p.Runc)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if pr, ok := all[c.InitPid]; ok && pr.start == strconv.FormatUint(c.InitStart, 10) {
			ours[pr.pid] = pr
		}
		for _, dir := range c.CgroupPaths {
			for _, pid := range cgroupProcesses(dir) {
				if pr, ok := all[pid]; ok {
					ours[pid] = pr
				}
			}
		}
	}
	delete(ours, os.Getpid())
	return ours, nil
}

// descendants returns the processes that the given ones started, and those started by these.
func descendants(all map[int]process, of ...int) map[int]process {
	found := map[int]process{}
	for grown := true; grown; {
		grown = false
		for _, pr := range all {
			if _, known := found[pr.pid]; known || slices.Contains(of, pr.pid) {
				continue
			}
			if _, ok := found[pr.parent]; ok || slices.Contains(of, pr.parent) {
				found[pr.pid] = pr
				grown = true
			}
		}
	}
	return found
}

// cgroupProcesses lists the processes of a container's cgroup and those below.
func cgroupProcesses(dir string) []int {
	if filepath.Clean(dir) == "/sys/fs/cgroup" || !strings.HasPrefix(dir, "/sys/fs/cgroup/") {
		return nil
	}
	var pids []int
	// A cgroup that is gone has no processes.
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, line := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(line); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// killOurs kills every process of this data folder's pods, including those started meanwhile, and
// waits until all are gone.
func killOurs(ctx context.Context, p layout.Paths) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ours, err := findOurs(p)
		if err != nil {
			return err
		}
		if len(ours) == 0 {
			return nil
		}
		for pid := range ours {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of a pod: %w", pid, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d processes of pods to end: %w", len(ours), ctx.Err())
		}
	}
}
