package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
)

// How much of a disk the kubelet keeps free by evicting pods.
const (
	// storeReserve is the room for what does not stop when pods do: a server's store, containerd's
	// records, the host's own files. Eviction starts while all of it is still free.
	storeReserve = 256 << 20
	// evictShare of a disk, in thousandths and at most evictShareMax, is kept free beside it: what
	// pods may write between two looks of the kubelet, ten seconds apart.
	evictShare    = 25
	evictShareMax = 768 << 20
	// evictMax, in thousandths, is the most of a small disk that both may be.
	evictMax = 80
	// fallbackThreshold is for a disk whose size cannot be found out.
	fallbackThreshold = "5%"
)

// evictBelow returns the free space below which pods are evicted from a disk of a size. Upstream
// has 10 and 15 % of the disk, which is most of the room left on a small card, and 200 GB of a
// large disk that is far from full.
func evictBelow(size int64) int64 {
	return min(storeReserve+min(size/1000*evictShare, evictShareMax), size/1000*evictMax)
}

// setEviction sets the thresholds for the disks of pods and of images, which may be one.
//
// There is no minimum to reclaim beyond them. With one, the kubelet goes on after it has evicted
// the pod that filled the disk, and evicts pods that wrote nothing until the rest is free as well.
func setEviction(k *config.KubeletConfiguration, podDir, imageDir string,
	statfs func(string, *unix.Statfs_t) error) {
	k.EvictionHard = map[string]string{
		"memory.available":   "50Mi",
		"nodefs.available":   threshold(podDir, statfs),
		"nodefs.inodesFree":  "5%",
		"imagefs.available":  threshold(imageDir, statfs),
		"imagefs.inodesFree": "5%",
	}
	k.EvictionMinimumReclaim = nil
}

// threshold returns the threshold for the disk of a folder, which may not exist yet.
func threshold(dir string, statfs func(string, *unix.Statfs_t) error) string {
	var s unix.Statfs_t
	err := statfs(dir, &s)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		err = statfs(dir, &s)
	}
	size := int64(s.Blocks) * s.Bsize
	if err != nil || size <= 0 {
		return fallbackThreshold
	}
	return fmt.Sprintf("%dMi", max(1, evictBelow(size)>>20))
}
