package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mote-dev/mote/internal/datadir"
)

// maxSocketPath is the longest path the kernel takes for a Unix socket, including the terminating
// zero.
const maxSocketPath = 108

// Paths are the files and folders of the container runtime of one agent.
type Paths struct {
	// Agent is the agent's data folder, <data-dir>/agent. Everything that must survive a reboot is
	// below it, except Bin.
	Agent string
	// Bin is where the bundled tools are unpacked. It is beside Agent.
	Bin string
	// Run holds what need not survive a reboot: sockets, bundles of running containers, network
	// namespaces. It is a folder of /run/mote named for Agent, because paths of Unix sockets are
	// short.
	Run string

	Root       string // containerd's persistent state
	State      string // containerd's state until the next boot
	Socket     string // containerd's gRPC socket
	TTRPC      string // where shims report events
	Shims      string // sockets of the shims
	Runc       string // runc's own state
	Registries string // hosts.toml files made from the registries file
	Marks      string // clean-stop mark, boot id, list of loaded archives
	CNI        string // the pod network's configuration and its leases
	CNIConf    string // the folder of CNI that containerd watches for a configuration
	Images     string // image archives loaded at start
	Imported   string // the archives in Images kept by `mote image import`
}

// For returns the paths of an agent's data folder.
func For(agentDir string) Paths {
	agent := filepath.Clean(agentDir)
	run := runDir(agent)
	node := datadir.Agent(agent)
	return Paths{
		Agent:      agent,
		Bin:        node.Paths().Bin(),
		Run:        run,
		Root:       node.Containerd(),
		State:      filepath.Join(run, "state"),
		Socket:     socketPath(agent, run),
		TTRPC:      filepath.Join(run, "ttrpc.sock"),
		Shims:      filepath.Join(run, "s"),
		Runc:       filepath.Join(run, "runc"),
		Registries: node.Registries(),
		Marks:      node.Runtime(),
		CNI:        node.CNI(),
		CNIConf:    node.CNIConf(),
		Images:     node.Images(),
		Imported:   node.Imported(),
	}
}

func socketPath(agent, run string) string {
	if socket := datadir.Agent(agent).ContainerdSocket(); len(socket) < maxSocketPath {
		return socket
	}
	return filepath.Join(run, "containerd.sock")
}

// runDir names the run-time folder of a data folder by a hash of its real path, so that the same
// folder reached through a symbolic link has the same one, also before a node's first start.
func runDir(agent string) string {
	real, err := datadir.Resolve(agent)
	if err != nil {
		real = agent // nothing is there, which whoever opens it reports
	}
	sum := sha256.Sum256([]byte(real))
	return filepath.Join("/run/mote", hex.EncodeToString(sum[:4]))
}

// Mkdirs creates the folders containerd expects its caller to create.
func (p Paths) Mkdirs() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{p.Agent, 0o755},
		{p.Root, 0o711},
		{p.Run, 0o711},
		{p.State, 0o711},
		{p.Shims, 0o711},
		{p.Runc, 0o700},
		{p.Marks, 0o700},
		{p.CNIConf, 0o755},
		{p.Images, 0o755},
		{filepath.Dir(p.Socket), 0o711},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("create folder of the container runtime: %w", err)
		}
	}
	return nil
}
