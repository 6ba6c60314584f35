package runtime

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// logsOwner is an extended attribute of the folder with a pod's logs: the data folder of the pod's
// node. All kubelets of a machine share the folder above it, and the logs outlast the pod. Every
// file system that Linux runs from supports attributes in the trusted namespace, even if none in
// the user namespace.
const logsOwner = "trusted.mote.data-dir"

// markLogs records that the logs in dir are those of a pod of dataDir's node.
func markLogs(dir, dataDir string) error { return unix.Setxattr(dir, logsOwner, []byte(dataDir), 0) }

// OwnsLogs reports whether dir holds the logs of a pod of the node with the data folder dataDir,
// <data-dir>/agent. It needs root.
func OwnsLogs(dir, dataDir string) (bool, error) {
	owner := make([]byte, unix.PathMax)
	n, err := unix.Lgetxattr(dir, logsOwner, owner)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the owner of the logs in %s: %w", dir, err)
	}
	return string(owner[:n]) == dataDir, nil
}
