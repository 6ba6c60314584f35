package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"
)

// DefaultRegistriesFile is where mirrors and credentials are read from unless
// Config says otherwise.
const DefaultRegistriesFile = "/etc/mote/registries.yaml"

// maxSocketPath is the longest path the kernel takes for a Unix socket, its
// terminating zero counted.
const maxSocketPath = 108

// Config is what a Runtime is made of. Only DataDir is required.
type Config struct {
	// DataDir is the agent's folder, <data-dir>/agent. Everything that must
	// survive a reboot lies below it. Required, absolute.
	DataDir string
	// BinDir is where the bundled tools are unpacked to. Default: "bin" beside
	// DataDir.
	BinDir string
	// RunDir holds what need not survive a reboot: sockets, bundles of running
	// containers, network namespaces. Default: a folder of /run/mote named for
	// DataDir, because the paths of Unix sockets are short.
	RunDir string
	// CNIConfDir is the folder the pod network's configuration is read from.
	// Default: cni/conf below DataDir. A file that appears later is noticed.
	CNIConfDir string
	// CNIBinDirs are searched for CNI plugins after the bundled ones.
	// Default: none.
	CNIBinDirs []string
	// ImagesDir is searched for image archives at start. Default: images below
	// DataDir.
	ImagesDir string
	// RegistriesFile sets mirrors and credentials; it may be missing. Default:
	// DefaultRegistriesFile.
	RegistriesFile string
	// CgroupDriver is "systemd" or "cgroupfs": who makes the cgroups of pods. The
	// kubelet asks for it. Default: cgroupfs, on hosts that systemd runs as well.
	// There Kubernetes advises systemd, but it removes a container's cgroup as the
	// last process ends, maybe before it can be asked whether memory was why.
	CgroupDriver string
	// Snapshotter is "overlayfs" or "native". Default: overlayfs where DataDir's
	// file system supports it, else native.
	Snapshotter string
	// MaxConcurrentDownloads is the number of layers of an image fetched at the
	// same time. Default: 3.
	MaxConcurrentDownloads int
	// Debug logs what containerd says at info level and below.
	Debug bool
	// Logger receives everything, containerd's own messages included. Default:
	// nothing is logged.
	Logger *zap.Logger
	// Progress, if set, hears about long work: the phase ("unpack", "import"),
	// a name, and how far it is. Total may be zero when it is not known.
	Progress func(phase, name string, done, total int64)
}

// withDefaults returns the configuration with every zero field replaced.
func (c Config) withDefaults() Config {
	c.DataDir = filepath.Clean(c.DataDir)
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&c.BinDir, filepath.Join(filepath.Dir(c.DataDir), "bin"))
	set(&c.RunDir, runDirFor(c.DataDir))
	set(&c.CNIConfDir, filepath.Join(c.DataDir, "cni", "conf"))
	set(&c.ImagesDir, filepath.Join(c.DataDir, "images"))
	set(&c.RegistriesFile, DefaultRegistriesFile)
	if c.MaxConcurrentDownloads == 0 {
		c.MaxConcurrentDownloads = 3
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Progress == nil {
		c.Progress = func(string, string, int64, int64) {}
	}
	return c
}

// Validate reports all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" || !filepath.IsAbs(c.DataDir) {
		errs = append(errs, fmt.Errorf("data folder of the container runtime is %q: it must be an absolute path", c.DataDir))
	}
	switch c.Snapshotter {
	case "", snapshotterOverlay, snapshotterNative:
	default:
		errs = append(errs, fmt.Errorf("snapshotter is %q: it must be %s or %s", c.Snapshotter, snapshotterOverlay, snapshotterNative))
	}
	switch c.CgroupDriver {
	case "", cgroupDriverSystemd, cgroupDriverFS:
	default:
		errs = append(errs, fmt.Errorf("cgroup driver is %q: it must be %s or %s", c.CgroupDriver, cgroupDriverSystemd, cgroupDriverFS))
	}
	if c.MaxConcurrentDownloads < 0 {
		errs = append(errs, fmt.Errorf("concurrent downloads are %d: they must not be negative", c.MaxConcurrentDownloads))
	}
	return errors.Join(errs...)
}

// runDirFor names the run-time folder of a data folder. The real path is hashed,
// so that the same folder reached over a symbolic link gives the same answer.
func runDirFor(dataDir string) string {
	if real, err := filepath.EvalSymlinks(dataDir); err == nil {
		dataDir = real
	}
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join("/run/mote", hex.EncodeToString(sum[:4]))
}

// paths are all places the runtime keeps things at, derived from a Config.
type paths struct {
	root     string // containerd's persistent state
	state    string // containerd's state until the next boot
	socket   string // containerd's gRPC socket
	ttrpc    string // where shims report events
	shims    string // sockets of the shims
	runcRoot string // runc's own state
	certs    string // hosts.toml files made from RegistriesFile
	marks    string // clean-stop mark, boot id, list of loaded archives
	archives string // archives kept by `mote image import`
}

func (c Config) paths() paths {
	root := filepath.Join(c.DataDir, "containerd")
	p := paths{
		root:     root,
		state:    filepath.Join(c.RunDir, "state"),
		socket:   SocketPath(c.DataDir),
		ttrpc:    filepath.Join(c.RunDir, "ttrpc.sock"),
		shims:    filepath.Join(c.RunDir, "s"),
		runcRoot: filepath.Join(c.RunDir, "runc"),
		certs:    filepath.Join(c.DataDir, "registries"),
		marks:    filepath.Join(c.DataDir, "runtime"),
		archives: filepath.Join(c.ImagesDir, importedDir),
	}
	return p
}

// SocketPath returns the path of containerd's socket for an agent's data folder,
// so that commands find a running mote from its --data-dir alone.
func SocketPath(agentDir string) string {
	agentDir = filepath.Clean(agentDir)
	socket := filepath.Join(agentDir, "containerd", "containerd.sock")
	if len(socket) < maxSocketPath {
		return socket
	}
	return filepath.Join(runDirFor(agentDir), "containerd.sock")
}

// mkdirs creates the folders containerd expects its caller to create.
func (p paths) mkdirs(c Config) error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{c.DataDir, 0o755},
		{p.root, 0o711},
		{c.RunDir, 0o711},
		{p.state, 0o711},
		{p.shims, 0o711},
		{p.runcRoot, 0o700},
		{p.marks, 0o700},
		{c.CNIConfDir, 0o755},
		{c.ImagesDir, 0o755},
		{filepath.Dir(p.socket), 0o711},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("create folder of the container runtime: %w", err)
		}
	}
	return nil
}
