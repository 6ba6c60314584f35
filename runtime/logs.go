package runtime

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// logsOwner is the extended attribute of a folder with a pod's logs that holds
// the data folder of the pod's node. All kubelets of a machine share the folder
// above, and the logs outlast the pod. Every file system that Linux is run from
// takes attributes of the trusted kind, also where it takes none of users.
const logsOwner = "trusted.mote.data-dir"

// markLogs notes whose pod's logs are in dir.
func markLogs(dir, dataDir string) error { return unix.Setxattr(dir, logsOwner, []byte(dataDir), 0) }

// OwnsLogs reports whether dir holds the logs of a pod that was run by the node
// with the data folder dataDir, <data-dir>/agent. It takes root to know.
func OwnsLogs(dir, dataDir string) (bool, error) {
	owner := make([]byte, unix.PathMax)
	n, err := unix.Lgetxattr(dir, logsOwner, owner)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask whose logs are in %s: %w", dir, err)
	}
	return string(owner[:n]) == dataDir, nil
}
