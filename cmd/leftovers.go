package cmd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime"
	"github.com/mote-dev/mote/runtime/recovery"
)

// unmountPods unmounts what a node's kubelet mounted for pods below its folder. A file system in
// memory that is not one of the kubelet's kinds of volume would lose its content, so it stays.
func unmountPods(node datadir.Agent) error {
	// Mounts are listed by their real paths. A link may also be inside the data folder: to a larger
	// disk for what pods keep.
	kubelet, err := datadir.Resolve(node.Kubelet())
	if err != nil {
		return err
	}
	pods := strings.Replace(node.Pods(), node.Kubelet(), kubelet, 1)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(kubelet))
	if err != nil {
		return fmt.Errorf("list mounts below %s: %w", kubelet, err)
	}
	// The kernel lists a later mount later: the newest goes first.
	slices.Reverse(mounts)
	var errs []error
	for _, m := range mounts {
		if !kubeletMade(pods, m) && !boundToItself(kubelet, m) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
			!errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount volume %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// memoryVolumes are the plugins whose volumes are made in memory by the kubelet.
var memoryVolumes = []string{"kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~empty-dir",
	"kubernetes.io~configmap", "kubernetes.io~downward-api"}

// kubeletMade reports whether a mount is one the kubelet makes: pods/UID/volumes/PLUGIN/NAME or
// pods/UID/volume-subpaths/…. pods is the real path of that folder.
func kubeletMade(pods string, m *mountinfo.Info) bool {
	rel, err := filepath.Rel(pods, m.Mountpoint)
	if err != nil || strings.HasPrefix(rel, "..") {
		return false
	}
	parts := strings.Split(rel, "/")
	if len(parts) < 3 {
		return false
	}
	switch parts[1] {
	case "volume-subpaths":
		return true
	case "volumes":
		return m.FSType != "tmpfs" || slices.Contains(memoryVolumes, parts[2])
	}
	return false
}

// boundToItself reports whether a mount is the kubelet's folder mounted on itself, as the kubelet
// does to share the mounts in it. A disk mounted there is another device, or another folder of the
// same one.
func boundToItself(kubelet string, m *mountinfo.Info) bool {
	// The root of a mount is a path from the top of its file system: the end of its path here.
	if m.Mountpoint != kubelet || m.Root == "/" || !strings.HasSuffix(kubelet, m.Root) {
		return false
	}
	var above unix.Stat_t
	if err := unix.Stat(filepath.Dir(kubelet), &above); err != nil {
		return false
	}
	return unix.Major(above.Dev) == uint32(m.Major) && unix.Minor(above.Dev) == uint32(m.Minor)
}

// removePodLogs removes the logs of the pods of node: those marked as its own, and those of pods
// its kubelet has folders of. The logs' folder is the same for every kubelet of a machine, so the
// rest may be another's.
func removePodLogs(logs string, node datadir.Agent) error {
	entries, err := os.ReadDir(logs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list logs of pods: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(logs, e.Name())
		ours, err := runtime.OwnsLogs(dir, node.Dir())
		if err != nil {
			return err
		}
		// A pod's logs lie in NAMESPACE_NAME_UID.
		if parts := strings.Split(e.Name(), "_"); !ours && len(parts) == 3 {
			if ours, err = exists(filepath.Join(node.Pods(), parts[2])); err != nil {
				return err
			}
		}
		if !ours {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove logs of a pod: %w", err)
		}
	}
	return recovery.RemoveEmpty(logs)
}

// removeContainerLogLinks removes the links to logs that are gone with their pods.
func removeContainerLogLinks(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list logs of containers: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.Contains(target, "/pods/") && !strings.Contains(target, "/pod-logs/") {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove link to a log: %w", err)
			}
		}
	}
	return recovery.RemoveEmpty(dir)
}

// kubeletHome is where every kubelet keeps its socket for device plugins, whatever folder it was
// given.
const kubeletHome = "/var/lib/kubelet"

// removeDevicePlugins removes what our kubelet left in the place all kubelets use. If anything else
// is there, or somebody answers on the socket, the place is another's.
func removeDevicePlugins(home string) error {
	plugins := filepath.Join(home, "device-plugins")
	for dir, ours := range map[string][]string{home: {"device-plugins"},
		plugins: {"kubelet.sock", "kubelet_internal_checkpoint"}} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at folder of device plugins: %w", err)
		}
		for _, e := range entries {
			if !slices.Contains(ours, e.Name()) {
				return nil
			}
		}
	}
	switch answers, err := answers(filepath.Join(plugins, "kubelet.sock")); {
	case err != nil:
		return fmt.Errorf("ask whose the folder of device plugins is: %w", err)
	case answers:
		return nil
	}
	for _, name := range []string{"kubelet.sock", "kubelet_internal_checkpoint"} {
		if err := os.Remove(filepath.Join(plugins, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove file of device plugins: %w", err)
		}
	}
	return errors.Join(recovery.RemoveEmpty(plugins), recovery.RemoveEmpty(home))
}

// answers reports whether a process listens on a Unix socket. Only the kernel's word that none does
// counts as no: a kubelet that is too busy to accept is one, too.
func answers(socket string) (bool, error) {
	c, err := net.Dial("unix", socket)
	switch {
	case err == nil:
		return true, c.Close()
	case errors.Is(err, unix.EAGAIN):
		return true, nil // its queue is full
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return false, nil
	}
	return false, err
}

const cgroupMount = "/sys/fs/cgroup"

// removeCgroups removes the cgroups of pods in every hierarchy. Ours are empty by now: one that a
// process is in, or below, is that of another kubelet which has the same place, such as a
// container's, and stays as it is. It returns those.
func removeCgroups(root string) (left []string, err error) {
	hierarchies := []string{cgroupMount}
	unified, err := exists(filepath.Join(cgroupMount, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	if !unified {
		entries, err := os.ReadDir(cgroupMount)
		if err != nil {
			return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
		}
		hierarchies = hierarchies[:0]
		for _, e := range entries {
			if e.IsDir() {
				hierarchies = append(hierarchies, filepath.Join(cgroupMount, e.Name()))
			}
		}
	}
	var errs []error
	for _, h := range hierarchies {
		pods := []string{filepath.Join(h, root, "kubepods.slice"), filepath.Join(h, root, "kubepods")}
		if root != "/" {
			pods = append(pods, filepath.Join(h, root))
		}
		for _, dir := range pods {
			used, err := inUse(dir)
			switch {
			case err != nil:
				errs = append(errs, err)
			case used:
				// Version 1 has it in every hierarchy.
				if name := strings.TrimPrefix(dir, h); !slices.Contains(left, name) {
					left = append(left, name)
				}
			case filepath.Ext(dir) == ".slice":
				errs = append(errs, stopSlices(dir), removeCgroup(dir))
			default:
				errs = append(errs, removeCgroup(dir))
			}
		}
	}
	return left, errors.Join(errs...)
}

// inUse reports whether a process is in a cgroup or below it.
func inUse(dir string) (used bool, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || e.Name() != "cgroup.procs" {
			return err
		}
		processes, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // gone meanwhile, or one of threads, whose processes are listed above
		}
		if len(processes) > 0 {
			used = true
			return fs.SkipAll
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for processes of pods: %w", err)
	}
	return used, nil
}

// stopSlices makes systemd forget the slices of pods that nothing runs in any more: it would make
// the cgroup of one it knows again.
func stopSlices(dir string) error {
	empty, err := emptySlices(dir)
	if err != nil || len(empty) == 0 {
		return err
	}
	out, err := exec.Command("systemctl", append([]string{"stop", "--"}, empty...)...).CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("stop the slices of pods: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// emptySlices names the slices at and below dir that no process is in or below, as cgroup version 2
// tells, but for those in one that is named: with a slice systemd stops all in it.
func emptySlices(dir string) ([]string, error) {
	var empty []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the kubelet or systemd was faster
		}
		if err != nil || !d.IsDir() || filepath.Ext(path) != ".slice" {
			return err
		}
		events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && bytes.Contains(events, []byte("populated 0\n")) {
			empty = append(empty, d.Name())
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for slices of pods: %w", err)
	}
	return empty, nil
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// Only Rmdir: a cgroup's files are the kernel's.
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}
