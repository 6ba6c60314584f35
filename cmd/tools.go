package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/runtime/bundle"
	"github.com/mote-dev/mote/runtime/layout"
	"github.com/mote-dev/mote/server"
)

// crictl is an executable of its own in the bundle, as the code of that tool is no library.
const crictl = "crictl"

// crictlConfig is the file crictl reads unless another is named.
const crictlConfig = "/etc/crictl.yaml"

func (p program) kubectlCommand() *cli.Command {
	return &cli.Command{
		Name:      "kubectl",
		Usage:     "run the built-in kubectl against this machine's cluster",
		UsageText: "mote kubectl ARGUMENT…",
		Description: "All arguments go to kubectl. Without --kubeconfig and KUBECONFIG it uses the file `mote " +
			"server` wrote.",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			env, err := p.kubectlEnv(c.Args().Slice())
			if err != nil {
				return err
			}
			return p.execHelper("kubectl", c.Args().Slice(), env)
		},
	}
}

func (p program) ctrCommand() *cli.Command {
	return &cli.Command{
		Name:      "ctr",
		Usage:     "run the built-in ctr against this machine's containerd",
		UsageText: "mote ctr ARGUMENT…",
		Description: "All arguments go to ctr. Without --address and CONTAINERD_ADDRESS it connects to the " +
			"containerd of the mote in MOTE_DATA_DIR, in the k8s.io namespace.",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			socket, err := p.toolSocket(c.Args().Slice(), "CONTAINERD_ADDRESS")
			if err != nil {
				return err
			}
			env := p.withDefaults(map[string]string{
				"CONTAINERD_ADDRESS":   socket,
				"CONTAINERD_NAMESPACE": "k8s.io",
			})
			return p.execHelper("ctr", c.Args().Slice(), env)
		},
	}
}

func (p program) crictlCommand() *cli.Command {
	return &cli.Command{
		Name:      "crictl",
		Usage:     "run the built-in crictl against this machine's container runtime",
		UsageText: "mote crictl ARGUMENT…",
		Description: "All arguments go to crictl. Without --runtime-endpoint and CONTAINER_RUNTIME_ENDPOINT it " +
			"connects to the containerd of the mote in MOTE_DATA_DIR.",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			socket, err := p.toolSocket(c.Args().Slice(), "CONTAINER_RUNTIME_ENDPOINT")
			if err != nil {
				return err
			}
			env := p.withDefaults(map[string]string{
				"CONTAINER_RUNTIME_ENDPOINT": "unix://" + socket,
				"IMAGE_SERVICE_ENDPOINT":     "unix://" + socket,
			})
			if _, err := os.Stat(crictlConfig); errors.Is(err, fs.ErrNotExist) {
				env = append(env, p.withoutCrictlConfig(c.Args().Slice())...)
			}
			return p.execHelper(crictl, c.Args().Slice(), env)
		},
	}
}

// toolSocket returns the socket of this machine's containerd for a tool. If neither args nor the
// variable name another one, the user must be allowed to connect to it.
func (p program) toolSocket(args []string, variable string) (string, error) {
	dir, err := p.machineSetting("data-dir", server.DefaultDataDir)
	if err != nil {
		return "", err
	}
	socket := layout.For(datadir.At(dir).Agent().Dir()).Socket
	if other, _ := p.lookupEnv(variable); other != "" {
		return socket, nil
	}
	return socket, p.toolMayConnect(args, socket)
}

// withDefaults is the environment with the variables that are not set in it.
func (p program) withDefaults(variables map[string]string) []string {
	env := os.Environ()
	for name, value := range variables {
		if _, set := p.lookupEnv(name); !set {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// withoutCrictlConfig is what to add to crictl's environment where its own file is not there: with
// the name of none, crictl warns at each call that it looked for one. `crictl config` makes the
// file, so it gets the usual name.
func (p program) withoutCrictlConfig(args []string) []string {
	if file, _ := p.lookupEnv("CRI_CONFIG_FILE"); file != "" || slices.Contains(args, "config") {
		return nil
	}
	return []string{"CRI_CONFIG_FILE=" + os.DevNull}
}

// machineSetting resolves one setting of this machine's mote for a command that takes no flags of
// its own. A configuration file that cannot be used is an error, as it may have the setting.
func (p program) machineSetting(name, otherwise string) (string, error) {
	wanted := settings.Setting{Name: name, Default: otherwise}
	if value, _ := p.lookupEnv(wanted.Env()); value != "" {
		return value, nil
	}
	config, err := settings.Resolve([]settings.Setting{configSetting}, settings.Sources{LookupEnv: p.lookupEnv})
	if err := errors.Join(p.checkVariables(nil), err); err != nil {
		return "", err
	}
	files, err := settings.ReadFiles(config.String("config"), config.From("config") != "", fileKeys())
	if err != nil {
		return "", err
	}
	v, err := settings.Resolve([]settings.Setting{wanted}, settings.Sources{Files: files})
	if err != nil {
		return "", err
	}
	if err := v.Replace(dataDirSetting.Name, datadir.Resolve); err != nil {
		return "", err
	}
	return v.String(name), nil
}

// execHelper becomes the executable of a tool: crictl's own, or the helper, which behaves as the
// tool of its name. It is unpacked first if no server has done so.
func (p program) execHelper(name string, args, env []string) error {
	file := bundle.Helper
	if name == crictl {
		file = crictl
	}
	path, err := p.helper(file)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{name}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// helper finds an executable of this very mote, and unpacks it if no server has done so. A
// data folder that a mote runs on is left to that one, and one that does not exist is not made for
// this.
func (p program) helper(file string) (string, error) {
	manifest, err := bundle.ReadManifest()
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(manifest.Files, func(f bundle.File) bool { return f.Name == file }) {
		return "", fmt.Errorf("this mote was built without %s: install the tool, or a mote that has it", file)
	}
	own, cache := "", ""
	if dir, err := datadir.UserBin(); err == nil {
		cache = dir
	}
	dataDir, err := p.machineSetting("data-dir", server.DefaultDataDir)
	switch {
	case err == nil:
		own = datadir.At(dataDir).Bin()
	case cache == "":
		return "", err
	}
	// Without it the user's cache will do: the executable is the same wherever it lies.
	for _, dir := range []string{own, cache} {
		unpacked := filepath.Join(dir, manifest.Hash[:16])
		if dir != "" && bundle.Verify(unpacked, manifest, false) == nil {
			return filepath.Join(unpacked, file), nil
		}
	}
	dir := cache
	if dir == "" || own != "" && p.mayUnpack(dataDir) {
		dir = own
	}
	b, err := bundle.Unpack(bundle.Options{Dir: dir})
	if err != nil {
		// Another command may have unpacked it at the same moment.
		unpacked := filepath.Join(dir, manifest.Hash[:16])
		if bundle.Verify(unpacked, manifest, false) == nil {
			return filepath.Join(unpacked, file), nil
		}
		return "", fmt.Errorf("unpack the tools to %s: %w", dir, err)
	}
	return b.Path(file), nil
}

// mayUnpack reports whether the data folder is there, writable for this user, and not in use. If
// that cannot be found out, the user's cache will do.
func (p program) mayUnpack(dataDir string) bool {
	if os.Geteuid() != 0 {
		return false
	}
	there, err := exists(dataDir)
	if err != nil || !there {
		return false
	}
	running, err := datadir.Holder(dataDir)
	return err == nil && running == 0
}

// exists reports whether there is a file or folder at path. An error that leaves it open is
// returned: callers remove, or make anew, what they take for missing.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return false, nil
	}
	return false, fmt.Errorf("look for %s: %w", path, err)
}
