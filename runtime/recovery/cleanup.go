package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/layout"
)

// killTimeout bounds the wait for killed processes. SIGKILL takes effect at once unless a process
// hangs in the kernel.
const killTimeout = 20 * time.Second

// cniCache is the default folder in which CNI's library and its host-local plugin keep a file for
// each pod. The files name the pod's sandbox.
const cniCache = "/var/lib/cni"

// KillAll ends every pod of an agent's data folder as a power cut would: it kills the processes and
// removes the mounts, network namespaces, cgroups and sockets. The data folder stays. It may be
// repeated. No Runtime may run over the folder meanwhile.
func KillAll(ctx context.Context, dataDir string) error {
	return killAll(ctx, layout.For(dataDir))
}

// EndPods is KillAll for a data folder that a Runtime is to use again: the next one takes it as it
// does after a boot.
func EndPods(ctx context.Context, dataDir string) error {
	p := layout.For(dataDir)
	if err := killAll(ctx, p); err != nil {
		return err
	}
	for _, mark := range []string{bootFile, cleanMark} {
		if err := os.Remove(filepath.Join(p.Marks, mark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the last stop: %w", err)
		}
	}
	return nil
}

func killAll(ctx context.Context, p layout.Paths) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	cgroups, err := containerCgroups(p)
	if err != nil {
		return err
	}
	if err := killOurs(ctx, p); err != nil {
		return err
	}
	// Unmounting the file of a network namespace ends the namespace and with it the pod's
	// interfaces. containerd mounts only here: mounts in the data folder are the user's.
	if err := unmountBelow(p.Run); err != nil {
		return err
	}
	if err := removeCgroups(ctx, cgroups); err != nil {
		return err
	}
	kept, err := RemoveTree(p.Run)
	if err != nil {
		return fmt.Errorf("remove state of pods: %w", err)
	}
	if len(kept) > 0 {
		return fmt.Errorf("remove state of pods: still mounted: %s", strings.Join(kept, ", "))
	}
	return nil
}

// Cleanup ends every pod of an agent's data folder and removes what the container runtime made: its
// part of the data folder, the run-time folder, the pods' files in CNI's caches. Mounts inside that
// are not containerd's are neither unmounted nor deleted, but returned. It may be repeated, also
// after an interruption.
func Cleanup(ctx context.Context, dataDir string) (leftovers []string, err error) {
	p := layout.For(dataDir)
	switch _, statErr := os.Stat(p.Agent); {
	case errors.Is(statErr, fs.ErrNotExist):
		// There is nothing to lock. What an interrupted clean-up left elsewhere is removed.
	case statErr != nil:
		return nil, fmt.Errorf("find data folder: %w", statErr)
	default:
		if err := p.Mkdirs(); err != nil {
			return nil, err
		}
		unlock, lockErr := Lock(p)
		if lockErr != nil {
			return nil, lockErr
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	sandboxes, err := sandboxIDs(p)
	if err != nil {
		return nil, err
	}
	if err := killAll(ctx, p); err != nil {
		return nil, err
	}
	if err := forgetCNI(cniCache, sandboxes, p.Agent); err != nil {
		return nil, err
	}
	images := p.Images
	if st, err := os.Lstat(images); err == nil && st.Mode().Type() == fs.ModeSymlink {
		// The archives of a folder elsewhere are not only for this node.
		images = p.Imported
	}
	for _, dir := range []string{p.Root, p.Registries, p.Marks, p.CNI, images, p.Bin} {
		kept, err := RemoveTree(dir)
		if err != nil {
			return leftovers, err
		}
		leftovers = append(leftovers, kept...)
	}
	for _, dir := range []string{p.Agent, filepath.Dir(p.Run)} {
		if err := RemoveEmpty(dir); err != nil {
			return leftovers, err
		}
	}
	return leftovers, nil
}

// containerCgroups lists the cgroups runc made for this data folder's containers.
func containerCgroups(p layout.Paths) ([]string, error) {
	list, err := containers(p.Runc)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, c := range list {
		for _, dir := range c.CgroupPaths {
			if strings.HasPrefix(dir, "/sys/fs/cgroup/") {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}

// removeCgroups removes containers' cgroups with all below, and the pods' cgroups above if they are
// then empty. The kernel needs a moment to release a cgroup whose last process was killed.
func removeCgroups(ctx context.Context, dirs []string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, dir := range dirs {
		for {
			err := removeCgroup(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup %s: %w", dir, ctx.Err())
			}
		}
		for d := filepath.Dir(dir); isPodCgroup(filepath.Base(d)); d = filepath.Dir(d) {
			if os.Remove(d) != nil {
				break // not empty: another pod's, or another mote's
			}
		}
	}
	return nil
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// isPodCgroup reports whether a cgroup has a name the kubelet gives to those of pods, in the
// spelling of either cgroup driver.
func isPodCgroup(name string) bool {
	return strings.HasPrefix(name, "pod") || strings.HasPrefix(name, "kubepods") ||
		name == "burstable" || name == "besteffort"
}

// sandboxIDs lists the pods CRI has records of.
func sandboxIDs(p layout.Paths) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.Root, layout.CRI, "sandboxes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none ever ran
	}
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// forgetCNI removes from CNI's cache the files that name one of the pods, and those of pods that a
// power cut ended without detaching them. The latter hold the network's configuration, which keeps
// its leases below dataDir. The cache's folders go too unless another runtime's pods are in them.
func forgetCNI(cache string, sandboxes []string, dataDir string) error {
	folders := []string{cache, filepath.Join(cache, "results"), filepath.Join(cache, "networks")}
	for _, dir := range folders[1:] {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, id := range sandboxes {
				if strings.Contains(path, id) || strings.Contains(string(data), id) {
					return os.Remove(path)
				}
			}
			var cached struct{ Config []byte }
			if json.Unmarshal(data, &cached) == nil && bytes.Contains(cached.Config, []byte(dataDir+"/")) {
				return os.Remove(path)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("remove pods from CNI's cache: %w", err)
		}
	}
	for _, dir := range slices.Backward(folders) {
		if err := RemoveEmpty(dir); err != nil {
			return err
		}
	}
	return nil
}
