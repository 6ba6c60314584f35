package runtime

import (
	"errors"
	"fmt"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/runtime/registry"
)

// DefaultRegistriesFile is the registries file used when Config names none.
const DefaultRegistriesFile = "/etc/mote/registries.yaml"

// ReadRegistries reads and checks a registries file. Only [DefaultRegistriesFile] may be missing: a
// file that somebody named is there or misspelled.
func ReadRegistries(file string) (registry.Config, error) {
	c, err := registry.Read(file)
	if errors.Is(err, registry.ErrMissing) && file == DefaultRegistriesFile {
		return registry.Config{}, nil
	}
	return c, err
}

// Config configures a Runtime. Only DataDir is required.
type Config struct {
	// DataDir is the agent's data folder, <data-dir>/agent; package layout has the paths in it.
	// Required, absolute.
	DataDir string
	// RegistriesFile configures mirrors and credentials. Default: DefaultRegistriesFile, which may
	// be missing.
	RegistriesFile string
	// CgroupDriver is "systemd" or "cgroupfs": what creates the cgroups of pods. The kubelet asks
	// the runtime for it. Default: cgroupfs, also on hosts run by systemd. Kubernetes recommends
	// systemd there, but systemd removes a container's cgroup as soon as its last process exits,
	// possibly before anyone could read whether the container was OOM-killed.
	CgroupDriver string
	// Snapshotter is "overlayfs" or "native". Default: overlayfs if DataDir's file system supports
	// it, else native.
	Snapshotter string
	// MaxConcurrentDownloads is the number of layers of an image fetched at the same time.
	// Default: 3.
	MaxConcurrentDownloads int
	// Debug logs containerd's messages at info level and below.
	Debug bool
	// Logger receives all messages, including containerd's own. Default: nothing is logged.
	Logger *zap.Logger
	// Progress, if set, is called during long work with the phase ("unpack", "import"), a name, and
	// how far it is. Total may be zero when it is not known.
	Progress func(phase, name string, done, total int64)
}

// withDefaults returns the configuration with every zero field replaced.
func (c Config) withDefaults() Config {
	c.DataDir = filepath.Clean(c.DataDir)
	if c.RegistriesFile == "" {
		c.RegistriesFile = DefaultRegistriesFile
	}
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

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" || !filepath.IsAbs(c.DataDir) {
		errs = append(errs,
			fmt.Errorf("data folder of the container runtime is %q: it must be an absolute path", c.DataDir))
	}
	switch c.Snapshotter {
	case "", snapshotterOverlay, snapshotterNative:
	default:
		errs = append(errs,
			fmt.Errorf("snapshotter is %q: it must be %s or %s", c.Snapshotter, snapshotterOverlay, snapshotterNative))
	}
	switch c.CgroupDriver {
	case "", cgroupDriverSystemd, cgroupDriverFS:
	default:
		errs = append(errs,
			fmt.Errorf("cgroup driver is %q: it must be %s or %s", c.CgroupDriver, cgroupDriverSystemd, cgroupDriverFS))
	}
	if c.MaxConcurrentDownloads < 0 {
		errs = append(errs,
			fmt.Errorf("concurrent downloads are %d: they must not be negative", c.MaxConcurrentDownloads))
	}
	return errors.Join(errs...)
}
