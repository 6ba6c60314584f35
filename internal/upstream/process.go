package upstream

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/version"
)

// gcPercent is how much garbage may accumulate, in percent of the live heap. An idle server makes
// little of it: the low target costs no time that could be measured and leaves a third of the heap
// Go would use by default to the pods.
const gcPercent = 50

// LimitGarbage sets the garbage collector's target.
func LimitGarbage() { debug.SetGCPercent(gcPercent) }

// pathMu serialises changes of PATH, which are a read and a write.
var pathMu sync.Mutex

// PrependPath puts dir first on this process' PATH.
func PrependPath(dir string) error {
	pathMu.Lock()
	defer pathMu.Unlock()
	path := os.Getenv("PATH")
	if first, _, _ := strings.Cut(path, string(filepath.ListSeparator)); first == dir {
		return nil
	}
	if err := os.Setenv("PATH", dir+string(filepath.ListSeparator)+path); err != nil {
		return fmt.Errorf("put %s on the PATH: %w", dir, err)
	}
	return nil
}

// SetTempMounts makes containerd mount snapshots in dir while it unpacks layers into them, and
// unmounts what a crash left there.
func SetTempMounts(dir string) error {
	if err := mount.SetTempMountLocation(dir); err != nil {
		return fmt.Errorf("set folder for temporary mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		return fmt.Errorf("clean up temporary mounts in %s: %w", dir, err)
	}
	return nil
}

// NameContainerd gives containerd the plain version that its source names. A build of its own would
// set it when linking; without, it ends in "+unknown" wherever it is shown, as in nodes' status.
var NameContainerd = sync.OnceFunc(func() {
	version.Version, _, _ = strings.Cut(version.Version, "+unknown")
})

// SetStatisticsSocket tells cAdvisor, which reads it from a flag only, where containerd listens.
func SetStatisticsSocket(socket string) error {
	if err := flag.Set("containerd", socket); err != nil {
		return fmt.Errorf("set runtime socket for statistics: %w", err)
	}
	return nil
}
