package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/runtime/layout"
)

// Names below the root and state folders of containerd that only recovery needs.
const (
	taskFolder      = "io.containerd.runtime.v2.task"
	mountFolder     = "io.containerd.mount-manager.v1.bolt"
	snapshotDB      = "metadata.db"
	snapshotsFolder = "snapshots"
	damagedPrefix   = "damaged-"
	// keptDamaged is how many sets of damaged files are kept for inspection.
	keptDamaged = 3
)

// Repair checks what the last stop left and repairs what containerd would trip over. After it,
// containerd finds either usable records or none. An error that does not mean damage ends it with
// the pods running and the records in place.
func Repair(ctx context.Context, p layout.Paths, last LastStop, log *zap.Logger) error {
	if !last.SameBoot {
		// Nothing from before the boot runs any more, wherever its traces are.
		if err := killAll(ctx, p); err != nil {
			return fmt.Errorf("clear state from before the boot: %w", err)
		}
		if err := p.Mkdirs(); err != nil {
			return err
		}
	}
	if !last.Clean {
		// Half-written content is useless: its writer is gone.
		if err := emptyFolder(filepath.Join(p.Root, layout.Content, "ingest")); err != nil {
			return err
		}
	}
	// The databases are small, and disks lie: they are checked at every start.
	if err := repairMountDB(p, log); err != nil {
		return fmt.Errorf("check containerd's list of mounts: %w", WithRemedy(err))
	}
	if err := findDamage(p); Damaged(err) {
		return SetAside(ctx, p, err, log)
	} else if err != nil {
		return fmt.Errorf("check containerd's records: %w", WithRemedy(err))
	}
	return restoreRecordFolders(p)
}

// restoreRecordFolders makes an empty folder for each running container whose folder of CRI records
// is gone. CRI overlooks a container without the folder, which then runs on unseen beside its
// successor. A container with an empty folder is reported in an unknown state, and the kubelet
// replaces it.
func restoreRecordFolders(p layout.Paths) error {
	bundles, err := taskFolders(p)
	if err != nil {
		return err
	}
	for _, b := range bundles {
		kind := "containers"
		// In the shim's folder of a container that joined a pod, a file names the pod.
		if _, err := os.Stat(filepath.Join(b, "sandbox")); errors.Is(err, fs.ErrNotExist) {
			kind = "sandboxes"
		} else if err != nil {
			return fmt.Errorf("find out whether a container is a pod's sandbox: %w", err)
		}
		if err := os.MkdirAll(filepath.Join(p.Root, layout.CRI, kind, filepath.Base(b)), 0o700); err != nil {
			return fmt.Errorf("create folder for container records: %w", err)
		}
	}
	return nil
}

// repairMountDB removes the mount manager's database if it is damaged. It only concerns mounts of
// this boot, and a node has none between starts.
func repairMountDB(p layout.Paths, log *zap.Logger) error {
	dir := filepath.Join(p.State, mountFolder)
	err := checkBolt(filepath.Join(dir, "mounts.db"))
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case !Damaged(err):
		return err
	}
	log.Warn("list of mounts is damaged: starting a new one", zap.Error(err))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove damaged list of mounts: %w", err)
	}
	return nil
}

func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list folder to empty: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("empty folder: %w", err)
		}
	}
	return nil
}
