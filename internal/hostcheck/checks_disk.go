package hostcheck

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func checkDataDir(h Host, o Options) []Result {
	err := h.TryDir(o.DataDir)
	switch {
	case err == nil:
		return ok("data-dir", "%s on %s", o.DataDir, h.FileSystem(o.DataDir))
	case IsFull(err) && o.Existing:
		return ok("data-dir", "%s on %s, which is full", o.DataDir, h.FileSystem(o.DataDir))
	}
	return fail("data-dir", fmt.Sprintf("%s cannot be written: %v", o.DataDir, err), DirRemedy(err))
}

// DirRemedy says what to do about a data folder that cannot be written to.
func DirRemedy(err error) string {
	if IsFull(err) {
		return "free " + size(needSpace) + " and some inodes, or give a --data-dir on another disk"
	}
	return "give a --data-dir on a disk that is mounted read-write"
}

func checkOverlay(h Host, o Options) []Result {
	err := h.TryOverlay(o.DataDir)
	if err == nil {
		return ok("overlayfs", "works")
	}
	found := fmt.Sprintf("data-dir %s lies on %s, where overlayfs does not work (%v)", o.DataDir,
		h.FileSystem(o.DataDir), err)
	const remedy = "give a --data-dir on ext4, xfs or btrfs, or load the overlay module"
	switch {
	case IsFull(err) && o.Existing:
		return ok("overlayfs", "not tried: the disk is full")
	case !MeansNoOverlay(err):
		remedy := LimitRemedy(err)
		if remedy == "" {
			remedy = "find out why it cannot be tried there"
		}
		return fail("overlayfs", fmt.Sprintf("unknown whether it works for data-dir %s on %s: %v", o.DataDir,
			h.FileSystem(o.DataDir), err), remedy)
	}
	if err := h.TryCopies(o.DataDir); err != nil && !(IsFull(err) && o.Existing) {
		return fail("overlayfs", fmt.Sprintf("%s, and images cannot be copied there either (%v)", found, err), remedy)
	}
	return warn("overlayfs", found,
		remedy+": until then images are copied for each container, which takes more disk and time")
}

// errReadOnlyOverlay means that an upper folder lacks what overlayfs needs to write to it.
var errReadOnlyOverlay = errors.New("it mounts read-only")

// MeansNoOverlay reports whether a trial of overlayfs failed for good: the kernel has no overlayfs,
// the file system cannot carry one, or this process may not mount it.
func MeansNoOverlay(err error) bool {
	for _, known := range []error{unix.ENODEV, unix.EINVAL, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS,
		errReadOnlyOverlay} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// remoteFileSystems are those that another machine may have mounted at the same time.
var remoteFileSystems = []string{"nfs", "cifs", "smb", "9p", "ceph"}

// checkLocks tries what keeps two motes from one data folder, and the store's file from damage.
func checkLocks(h Host, o Options) []Result {
	const remedy = "give a --data-dir on a disk of this machine"
	kind := h.FileSystem(o.DataDir)
	if err := h.TryLocks(o.DataDir); IsFull(err) && o.Existing {
		return nil
	} else if err != nil {
		return fail("locks", fmt.Sprintf("files on %s of data-dir %s cannot be locked (%v)", kind, o.DataDir, err),
			remedy+", or mount it with locks: NFS needs version 4, or lockd, and no nolock")
	}
	if !slices.Contains(remoteFileSystems, kind) {
		return nil
	}
	if option := localLocks(h, o.DataDir); option != "" {
		return warn("locks", fmt.Sprintf("%s of data-dir %s is mounted with %s: locks hold on this machine alone", kind,
			o.DataDir, option), remedy+": a mote that another machine starts on the folder damages the cluster's store")
	}
	return warn("locks", fmt.Sprintf("data-dir %s lies on %s", o.DataDir, kind),
		remedy+": every write waits for the file server, and after a power cut it may hold old locks for minutes")
}

// localLocks returns the option by which dir's file system locks files on this machine only.
func localLocks(h Host, dir string) string {
	data, err := h.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	longest, options := "", ""
	for line := range strings.Lines(string(data)) {
		mount, source, found := strings.Cut(line, " - ")
		fields, end := strings.Fields(mount), strings.Fields(source)
		if !found || len(fields) < 5 || len(end) < 3 {
			continue
		}
		point := strings.TrimSuffix(fields[4], "/") + "/"
		if strings.HasPrefix(dir+"/", point) && len(point) >= len(longest) {
			longest, options = point, end[2]
		}
	}
	for _, option := range strings.Split(options, ",") {
		switch option {
		case "nolock", "nobrl", "local_lock=all", "local_lock=flock", "local_lock=posix":
			return option
		}
	}
	return ""
}

func checkSpace(h Host, o Options) []Result {
	free, inodes, err := h.Free(o.DataDir)
	if err != nil {
		return warn("disk", err.Error(), "check the disk of data-dir")
	}
	found := fmt.Sprintf("%s free for %s", size(free), o.DataDir)
	switch {
	case free < needSpace && o.Existing:
		// A disk fills up while mote runs, which goes on at 0 bytes: it must also come back.
		results := warn("disk", found,
			"free "+size(needSpace)+": until then what needs room fails, and pods may be evicted")
		results[0].Urgent = true
		return results
	case free < needSpace:
		return fail("disk", found, "free "+size(needSpace)+" or give a --data-dir on another disk")
	case free < wantSpace:
		return warn("disk", found, "free "+size(wantSpace)+": images of pods go there")
	// File systems that make inodes as needed report none at all.
	case inodes > 0 && inodes < wantInodes:
		return warn("disk", fmt.Sprintf("%d inodes free for %s", inodes, o.DataDir),
			"remove small files: images of pods have many")
	}
	return ok("disk", "%s", found)
}

// IsFull reports whether an error says that a disk, or somebody's share of it, is full.
func IsFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
