package runtime

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
)

// Folders and files containerd's plugins keep below root and state.
const (
	metadataDB      = "io.containerd.metadata.v1.bolt/meta.db"
	contentFolder   = "io.containerd.content.v1.content"
	criFolder       = "io.containerd.grpc.v1.cri"
	taskFolder      = "io.containerd.runtime.v2.task"
	mountFolder     = "io.containerd.mount-manager.v1.bolt"
	snapshotPrefix  = "io.containerd.snapshotter.v1."
	snapshotDB      = "metadata.db"
	snapshotsFolder = "snapshots"
	damagedPrefix   = "damaged-"
	// keptDamaged is how many sets of damaged files are kept for a look.
	keptDamaged = 3
)

// repair looks at what the last stop left and puts right what containerd would
// trip over. After it, containerd either finds a state it can use or none.
func (r *Runtime) repair(ctx context.Context, last lastStop) error {
	if !last.sameBoot {
		// Nothing of before the boot runs any more, wherever its traces are.
		if err := killAll(ctx, r.cfg, r.p); err != nil {
			return fmt.Errorf("clear state of before the boot: %w", err)
		}
		if err := r.p.mkdirs(r.cfg); err != nil {
			return err
		}
	}
	if !last.clean {
		// Half-written content is of no use to anyone: whoever wrote it is gone.
		if err := emptyFolder(filepath.Join(r.p.root, contentFolder, "ingest")); err != nil {
			return err
		}
	}
	// The databases are small: they are checked at every start, as disks lie too.
	if err := r.checkMountDB(); err != nil {
		return err
	}
	if problem := r.findDamage(); problem != nil {
		if remedy := shortage(problem); remedy != "" {
			return fmt.Errorf("check containerd's records: %w: %s", problem, remedy)
		}
		return r.setAside(ctx, problem.Error(), damagedAll)
	}
	return r.p.restoreRecordFolders()
}

// restoreRecordFolders makes an empty folder for each running container whose
// folder of CRI records is gone. CRI overlooks a container without the folder,
// which then runs on unseen beside its successor; one whose folder is empty it
// reports as being in an unknown state, and the kubelet replaces it.
func (p paths) restoreRecordFolders() error {
	bundles, err := filepath.Glob(filepath.Join(p.state, taskFolder, k8sNamespace, "*"))
	if err != nil {
		return fmt.Errorf("list running containers: %w", err)
	}
	for _, b := range bundles {
		kind := "sandboxes"
		// The shim's folder of a container that joined a pod names the pod.
		if _, err := os.Stat(filepath.Join(b, "sandbox")); err == nil {
			kind = "containers"
		}
		if err := os.MkdirAll(filepath.Join(p.root, criFolder, kind, filepath.Base(b)), 0o700); err != nil {
			return fmt.Errorf("create folder for container records: %w", err)
		}
	}
	return nil
}

// findDamage checks the database files containerd needs to agree on. A file
// that does not exist yet is whole, but they only make sense together.
func (r *Runtime) findDamage() error {
	meta := filepath.Join(r.p.root, metadataDB)
	_, err := os.Stat(meta)
	haveMeta := err == nil
	if haveMeta {
		if err := checkBolt(meta); err != nil {
			return err
		}
	}
	dbs, err := filepath.Glob(filepath.Join(r.p.root, snapshotPrefix+"*", snapshotDB))
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
func (r *Runtime) checkMountDB() error {
	dir := filepath.Join(r.p.state, mountFolder)
	err := checkBolt(filepath.Join(dir, "mounts.db"))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.log.Warn("list of mounts is damaged: starting a new one", zap.Error(err))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove damaged list of mounts: %w", err)
	}
	return nil
}

// shortage says what to do about an error that comes from what the machine has
// no more of, or "" if it is another. It says nothing about what is on disk.
func shortage(err error) string {
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
var damagedAll = []string{metadataDB, criFolder, snapshotPrefix + "*"}

// setAside ends the pods, moves the named files to a folder named for the time,
// and keeps only the records in it: unpacked snapshots, which can be large and
// can be made again, are removed.
func (r *Runtime) setAside(ctx context.Context, reason string, patterns []string) error {
	if err := killAll(ctx, r.cfg, r.p); err != nil {
		return fmt.Errorf("end pods whose records are damaged: %w", err)
	}
	if err := r.p.mkdirs(r.cfg); err != nil {
		return err
	}
	aside := filepath.Join(r.p.root, damagedPrefix+time.Now().UTC().Format("20060102T150405.000"))
	for _, pattern := range patterns {
		matches, err := filepath.Glob(filepath.Join(r.p.root, pattern))
		if err != nil {
			return fmt.Errorf("list damaged state: %w", err)
		}
		for _, from := range matches {
			rel, err := filepath.Rel(r.p.root, from)
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
	if err := errors.Join(atomicfile.SyncDir(r.p.root), atomicfile.Write(filepath.Join(r.p.marks, rebuildMark), nil, 0o600)); err != nil {
		return err
	}
	r.log.Warn("container state is damaged: set aside, to be rebuilt from content and image archives; pods start anew",
		zap.String("reason", reason), zap.String("folder", aside))
	return r.pruneDamaged()
}

// pruneDamaged removes the snapshots in the folders set aside, and all but the
// newest folders.
func (r *Runtime) pruneDamaged() error {
	folders, err := filepath.Glob(filepath.Join(r.p.root, damagedPrefix+"*"))
	if err != nil {
		return fmt.Errorf("list damaged state: %w", err)
	}
	slices.Sort(folders)
	old := max(len(folders)-keptDamaged, 0)
	for i, f := range folders {
		remove := []string{f}
		if i >= old {
			if remove, err = filepath.Glob(filepath.Join(f, snapshotPrefix+"*", snapshotsFolder)); err != nil {
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
