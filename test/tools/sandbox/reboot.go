//go:build linux

package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// PowerCut takes away what a machine loses when its power fails: processes, mounts, interfaces,
// rules, cgroups, everything under /run, the boot id. What was there at the time of the snapshot
// stays, and so do files on disk.
func PowerCut(at Snapshot) error {
	for _, step := range []func(Snapshot) error{
		killAll, unmountAll, unlinkAll, forgetRules, removeGroups, clearRun, newBootID} {
		if err := step(at); err != nil {
			return fmt.Errorf("cut power: %w", err)
		}
	}
	return nil
}

func killAll(Snapshot) error {
	for end := time.Now().Add(20 * time.Second); ; {
		left := processes()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d will not die: %s", left[0].pid, left[0].command)
		}
		for _, p := range left {
			// One that is gone already is as good.
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func unmountAll(at Snapshot) error {
	now, err := mountPoints()
	if err != nil {
		return err
	}
	for _, target := range slices.Backward(now) {
		if slices.Contains(at[Mounts], target) {
			continue
		}
		// With shared mounts one call may take several away.
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) &&
			!errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return nil
}

func unlinkAll(at Snapshot) error {
	now, err := Take()
	if err != nil {
		return err
	}
	for _, name := range now[Namespaces] {
		if !slices.Contains(at[Namespaces], name) {
			if err := os.Remove(filepath.Join("/run/netns", name)); err != nil {
				return fmt.Errorf("remove network namespace: %w", err)
			}
		}
	}
	for _, name := range now[Interfaces] {
		if !slices.Contains(at[Interfaces], name) {
			// The other end of a cable goes with the first.
			_ = exec.Command("ip", "link", "delete", name).Run()
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644)
}

func forgetRules(Snapshot) error {
	if _, err := exec.LookPath("nft"); err == nil {
		if err := run("nft", "flush", "ruleset"); err != nil {
			return err
		}
	}
	for file, tool := range map[string]string{"/proc/net/ip_tables_names": "iptables-legacy",
		"/proc/net/ip6_tables_names": "ip6tables-legacy"} {
		// Without the file or the tool there are no such rules.
		tables, _ := os.ReadFile(file)
		for _, table := range strings.Fields(string(tables)) {
			for _, flag := range []string{"-F", "-X"} {
				_ = exec.Command(tool, "-t", table, flag).Run()
			}
		}
	}
	return nil
}

func removeGroups(at Snapshot) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range trees {
		for _, dir := range cgroupsBelow(h.mountPoint) {
			if !slices.Contains(at[Cgroups], dir) {
				if err := RemoveCgroupTree(dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func clearRun(at Snapshot) error {
	for _, f := range slices.Backward(filesBelow("/run")) {
		if !slices.Contains(at[Files], f) && f != layersDir {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("empty /run: %w", err)
			}
		}
	}
	return nil
}

func newBootID(Snapshot) error {
	const id = "/proc/sys/kernel/random/boot_id"
	file := layersDir + "/boot_id"
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return fmt.Errorf("draw boot id: %w", err)
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, "%x-%x-%x-%x-%x\n", b[0:4], b[4:6], b[6:8], b[8:10], b[10:]),
		0o444); err != nil {
		return fmt.Errorf("write boot id: %w", err)
	}
	if err := syscall.Mount(file, id, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("set boot id: %w", err)
	}
	return nil
}
