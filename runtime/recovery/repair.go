package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/internal/atomicfile"
	"github.com/mote-dev/mote/runtime/layout"
)

// Names below the root and state folders of containerd that only recovery needs.
const (
	taskFolder      = "io.containerd.runtime.v2.task"
	mountFolder     = "io.containerd.mount-manager.v1.bolt"
	snapshotDB      = "metadata.db"
	snapshotsFolder = "snapshots"
	damagedPrefix   = "damaged-"
	// keptDamaged is how many sets of damaged files are kept for a look.
	keptDamaged = 3
)

// Repair looks at what the last stop left and puts right what containerd would
// trip over. After it, containerd either finds a state it can use or none.
func Repair(ctx context.Context, p layout.Paths, last LastStop, log *zap.Logger) error {
	if !last.SameBoot {
		// Nothing of before the boot runs any more, wherever its traces are.
		if err := killAll(ctx, p); err != nil {
			return fmt.Errorf("clear state of before the boot: %w", err)
		}
		if err := p.Mkdirs(); err != nil {
			return err
		}
	}
	if !last.Clean {
		// Half-written content is of no use to anyone: whoever wrote it is gone.
		if err := emptyFolder(filepath.Join(p.Root, layout.Content, "ingest")); err != nil {
			return err
		}
	}
	// The databases are small: they are checked at every start, as disks lie too.
	if err := checkMountDB(p, log); err != nil {
		return err
	}
	if problem := findDamage(p); problem != nil {
		if remedy := Remedy(problem); remedy != "" {
			return fmt.Errorf("check containerd's records: %w: %s", problem, remedy)
		}
		return SetAside(ctx, p, problem, log)
	}
	return restoreRecordFolders(p)
}

// restoreRecordFolders makes an empty folder for each running container whose
// folder of CRI records is gone. CRI overlooks a container without the folder,
// which then runs on unseen beside its successor; one whose folder is empty it
// reports as being in an unknown state, and the kubelet replaces it.
func restoreRecordFolders(p layout.Paths) error {
	bundles, err := filepath.Glob(filepath.Join(p.State, taskFolder, layout.Namespace, "*"))
	if err != nil {
		return fmt.Errorf("list running containers: %w", err)
	}
	for _, b := range bundles {
		kind := "sandboxes"
		// The shim's folder of a container that joined a pod names the pod.
		if _, err := os.Stat(filepath.Join(b, "sandbox")); err == nil {
			kind = "containers"
		}
		if err := os.MkdirAll(filepath.Join(p.Root, layout.CRI, kind, filepath.Base(b)), 0o700); err != nil {
			return fmt.Errorf("create folder for container records: %w", err)
		}
	}
	return nil
}

// findDamage checks the database files containerd needs to agree on. A file
// that does not exist yet is whole, but they only make sense together.
func findDamage(p layout.Paths) error {
	meta := filepath.Join(p.Root, layout.MetadataDB)
	_, err := os.Stat(meta)
	haveMeta := err == nil
	if haveMeta {
		if err := checkBolt(meta); err != nil {
			return err
		}
	}
	dbs, err := filepath.Glob(filepath.Join(p.Root, layout.Snapshotter+"*", snapshotDB))
	if err != nil {
		return fmt.Errorf("list snapshot databases: %w", err)
	}
	for _, db := range dbs {
		if !haveMeta {
			return fmt.Errorf("%w: %s exists without %s", errDamagedDB, db, meta)
		}
		if err := checkBolt(db); err != nil {
			return err
		}
		if err := checkSnapshotFolders(db); err != nil {
			return err
		}
	}
	return nil
}

// checkMountDB removes the list of the mount manager if it is damaged: it only
// concerns mounts of this boot, of which a node has none between starts.
func checkMountDB(p layout.Paths, log *zap.Logger) error {
	dir := filepath.Join(p.State, mountFolder)
	err := checkBolt(filepath.Join(dir, "mounts.db"))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	log.Warn("list of mounts is damaged: starting a new one", zap.Error(err))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove damaged list of mounts: %w", err)
	}
	return nil
}

// Remedy says what to do about an error that comes from what the machine has
// no more of, or "" if it is another. It says nothing about what is on disk.
func Remedy(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "raise what there is too little of, usually with `sysctl fs.inotify.max_user_instances=512`, else the limit of open files"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "make room on the disk of the data folder, or raise fs.inotify.max_user_watches if there is room"
	case errors.Is(err, unix.ENOMEM):
		return "free memory on this machine"
	}
	return ""
}

// damagedAll are the files set aside when the state cannot be used: containerd's
// records and those of CRI and the snapshotters, which refer to one another.
// Content stays: it is named by its hash, so importing or pulling an image again
// finds what is whole and writes only the rest.
var damagedAll = []string{layout.MetadataDB, layout.CRI, layout.Snapshotter + "*"}

// SetAside ends the pods, moves the named files to a folder named for the time,
// and keeps only the records in it: unpacked snapshots, which can be large and
// can be made again, are removed.
func SetAside(ctx context.Context, p layout.Paths, reason error, log *zap.Logger) error {
	if err := killAll(ctx, p); err != nil {
		return fmt.Errorf("end pods whose records are damaged: %w", err)
	}
	if err := p.Mkdirs(); err != nil {
		return err
	}
	aside := filepath.Join(p.Root, damagedPrefix+time.Now().UTC().Format("20060102T150405.000"))
	for _, pattern := range damagedAll {
		matches, err := filepath.Glob(filepath.Join(p.Root, pattern))
		if err != nil {
			return fmt.Errorf("list damaged state: %w", err)
		}
		for _, from := range matches {
			rel, err := filepath.Rel(p.Root, from)
			if err != nil {
				return fmt.Errorf("set damaged state aside: %w", err)
			}
			to := filepath.Join(aside, rel)
			if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
				return fmt.Errorf("set damaged state aside: %w", err)
			}
			if err := os.Rename(from, to); err != nil {
				return fmt.Errorf("set damaged state aside: %w", err)
			}
		}
	}
	if err := errors.Join(atomicfile.SyncDir(p.Root), atomicfile.Write(filepath.Join(p.Marks, layout.RebuildMark), nil, 0o600)); err != nil {
		return err
	}
	log.Warn("container state is damaged: set aside, to be rebuilt from content and image archives; pods start anew",
		zap.NamedError("reason", reason), zap.String("folder", aside))
	return pruneDamaged(p)
}

// pruneDamaged removes the snapshots in the folders set aside, and all but the
// newest folders.
func pruneDamaged(p layout.Paths) error {
	folders, err := filepath.Glob(filepath.Join(p.Root, damagedPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list damaged state: %w", err)
	}
	slices.Sort(folders)
	old := max(len(folders)-keptDamaged, 0)
	for i, f := range folders {
		remove := []string{f}
		if i >= old {
			if remove, err = filepath.Glob(filepath.Join(f, layout.Snapshotter+"*", snapshotsFolder)); err != nil {
				return fmt.Errorf("list damaged snapshots: %w", err)
			}
		}
		for _, dir := range remove {
			if err := os.RemoveAll(dir); err != nil {
				return fmt.Errorf("remove old damaged state: %w", err)
			}
		}
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
