package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostnets"
	"github.com/mote-dev/mote/netproxy/podnet"
)

// defaultDataDir is the data folder whose node uses the paths on the host that people and tools
// expect: /var/log/pods, cgroups at the top and the bridge mote0. A node with another data folder
// keeps to paths of its own, so that two of them can run on one machine.
const defaultDataDir = "/var/lib/mote"

const cgroupMount = "/sys/fs/cgroup"

// ID tells apart the nodes of one machine by their data folder; empty for the node with the default
// one. Links make no difference.
func ID(dataDir string) string {
	real := realPath(dataDir)
	if real == realPath(defaultDataDir) {
		return ""
	}
	sum := sha256.Sum256([]byte(real))
	return hex.EncodeToString(sum[:3])
}

// realPath is the path that tells a data folder from others. One that cannot be resolved is refused
// before a node starts.
func realPath(dataDir string) string {
	real, err := datadir.Resolve(dataDir)
	if err != nil {
		return filepath.Clean(dataDir)
	}
	return filepath.Clean(real)
}

func (a *Agent) podLogsDir() string { return PodLogsDir(a.config.DataDir) }

// PodLogsDir is where the node of a data folder writes containers' logs.
func PodLogsDir(dataDir string) string {
	if ID(dataDir) == "" {
		return "/var/log/pods"
	}
	return datadir.At(dataDir).Agent().PodLogs()
}

// CgroupRoot is the cgroup the pods of a data folder's node live in, "/" being the top.
func CgroupRoot(dataDir string) string {
	if id := ID(dataDir); id != "" {
		return "/mote-" + id
	}
	return "/"
}

// Bridge is the name of the bridge the pods of a data folder's node are connected to.
func Bridge(dataDir string) string {
	if id := ID(dataDir); id != "" {
		return "mote-" + id
	}
	return "mote0"
}

// OwnNetworks is what the node of a data folder makes of the host's networks itself.
func OwnNetworks(dataDir string) hostnets.Own {
	return podnet.Own(Bridge(dataDir), dns.DefaultInterface)
}

func (a *Agent) bridge() string { return Bridge(a.config.DataDir) }

// cgroupRoot makes the node's cgroup in every hierarchy: the kubelet takes only one that exists.
func (a *Agent) cgroupRoot() (string, error) {
	root := CgroupRoot(a.config.DataDir)
	if root == "/" {
		return root, nil
	}
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return root, mkdir(filepath.Join(cgroupMount, root))
	}
	hierarchies, err := os.ReadDir(cgroupMount)
	if err != nil {
		return "", fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, h := range hierarchies {
		if !h.IsDir() {
			continue
		}
		dir := filepath.Join(cgroupMount, h.Name(), root)
		if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("create cgroup %s: %w", dir, err)
		}
	}
	return root, initCPUSet(filepath.Join(cgroupMount, "cpuset", root))
}

// initCPUSet copies the parent's processors and memory nodes: a fresh cgroup v1 cpuset has none,
// and nothing can run in it.
func initCPUSet(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own := filepath.Join(dir, file)
		have, err := os.ReadFile(own)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", own, err)
		}
		if len(have) > 1 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return fmt.Errorf("read parent of %s: %w", own, err)
		}
		if err := os.WriteFile(own, parent, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", own, err)
		}
	}
	return nil
}
