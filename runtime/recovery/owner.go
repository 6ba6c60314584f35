package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/runtime/layout"
)

// folder is what the kernel knows a folder as, whatever path leads to it.
type folder struct{ device, inode uint64 }

// folderAt returns the folder at path. It says no if nothing, or no folder, is there.
func folderAt(path string) (folder, bool, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if isMissing(err) {
		return folder{}, false, nil
	}
	if err != nil {
		return folder{}, false, fmt.Errorf("look at %s: %w", path, err)
	}
	return folderOf(fd)
}

// folderOf returns the folder that is open as fd, and closes fd.
func folderOf(fd int) (folder, bool, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return folder{}, false, fmt.Errorf("look at folder: %w", err)
	}
	return folder{st.Dev, st.Ino}, true, nil
}

func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESRCH)
}

// owned are the folders by which a process shows that it works for this data folder.
type owned struct {
	// data and run hold containerd's socket, either of them; state holds the folders of tasks.
	data, run, state          folder
	hasData, hasRun, hasState bool
	socket                    string
}

func ownedBy(p layout.Paths) (o owned, err error) {
	o.socket = p.Socket
	var errs [3]error
	o.data, o.hasData, errs[0] = folderAt(p.Root)
	o.run, o.hasRun, errs[1] = folderAt(p.Run)
	o.state, o.hasState, errs[2] = folderAt(p.State)
	return o, errors.Join(errs[:]...)
}

// uses reports whether the process pid, which was given the path of a containerd's socket, works
// for this data folder: if the socket's folder is ours as that process sees it.
//
// The path alone says nothing. In another mount namespace, such as a container's, the same path is
// another folder, and through a link one folder has two paths.
func (o owned) uses(pid int, socket string) (bool, error) {
	at, found, err := folderIn(pid, filepath.Dir(socket))
	switch {
	case errors.Is(err, fs.ErrPermission) && socket != o.socket:
		// A process that may not be looked at is another's, unless it says that it is ours.
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find out whose process %d is: %w", pid, err)
	case found:
		return o.hasData && at == o.data || o.hasRun && at == o.run, nil
	}
	// The socket's folder was removed under it. A shim works in the folder of its task, which is
	// three below the state's.
	at, found, err = folderAt(fmt.Sprintf("/proc/%d/cwd/../../..", pid))
	if err != nil {
		return false, fmt.Errorf("find out whose process %d is: %w", pid, err)
	}
	return found && o.hasState && at == o.state, nil
}

// folderIn returns the folder that a path leads to for a process. It says no if there is none, or
// the process has ended.
func folderIn(pid int, path string) (folder, bool, error) {
	rootPath := fmt.Sprintf("/proc/%d/root", pid)
	root, err := unix.Open(rootPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if isMissing(err) {
		return folder{}, false, nil
	}
	if err != nil {
		return folder{}, false, fmt.Errorf("open %s: %w", rootPath, err)
	}
	defer unix.Close(root)
	// With the process's root, links to an absolute path lead where they lead for the process.
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT,
	})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		// Linux before 5.6, or a sandbox that does not know the call.
		return folderAt(rootPath + filepath.Clean("/"+path))
	}
	if isMissing(err) {
		return folder{}, false, nil
	}
	if err != nil {
		return folder{}, false, fmt.Errorf("look at %s of process %d: %w", path, pid, err)
	}
	return folderOf(fd)
}

// OtherNode looks for pods of another node in the cgroups below kubepods in the cgroup root, where
// the kubelet of the agent's data folder would take them for remains of its own and kill them. It
// returns the process that such a pod's shim is and the socket of the containerd that it reports
// to, or 0. Only a shim counts that can be seen to use another folder.
func OtherNode(agentDir, root string) (shim int, socket string, err error) {
	own, err := ownedBy(layout.For(agentDir))
	if err != nil {
		return 0, "", err
	}
	all, err := processes()
	if err != nil {
		return 0, "", err
	}
	for _, pr := range all {
		socket := pr.reportsTo()
		if socket == "" {
			continue
		}
		at, found, err := folderIn(pr.pid, filepath.Dir(socket))
		if err != nil || !found || own.hasData && at == own.data || own.hasRun && at == own.run {
			continue
		}
		for pid := range descendants(all, pr.pid) {
			if inPodCgroup(pid, root) {
				return pr.pid, socket, nil
			}
		}
	}
	return 0, "", nil
}

// inPodCgroup reports whether a process is in a cgroup for pods below root. One that has ended is
// in none.
func inPodCgroup(pid int, root string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	pods := filepath.Join(root, "kubepods")
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && (strings.HasPrefix(parts[2], pods+"/") || strings.HasPrefix(parts[2], pods+".slice/")) {
			return true
		}
	}
	return false
}
