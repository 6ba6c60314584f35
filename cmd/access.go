package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/server"
)

// deniedRemedy says what to do about err if it denies a user something that root may do. What
// denies root is no question of the user.
func deniedRemedy(err error, uid int) string {
	if uid == 0 || !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	// A firewall refuses root too.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Net != "unix" {
		return ""
	}
	text := err.Error()
	switch {
	case strings.Contains(text, "use sudo"):
		return ""
	case strings.Contains(text, fs.ErrPermission.Error()):
		return "use sudo"
	}
	return fs.ErrPermission.Error() + ", use sudo"
}

// missingKubeconfig says where to run a command that needs the kubeconfig a server writes.
func (p program) missingKubeconfig(file string) error {
	dataDir, err := p.machineSetting("data-dir", server.DefaultDataDir)
	if err != nil {
		return err
	}
	isAgent, err := holdsAgent(dataDir)
	if err != nil {
		return err
	}
	if !isAgent {
		return fmt.Errorf(
			"kubeconfig %s is not there: run this on the server's machine, or say with --kubeconfig which one to "+
				"talk to the cluster with", file)
	}
	where := ""
	// Only root may read which servers there are.
	if servers, err := join.Servers(datadir.At(dataDir).Agent().Identity()); err == nil && len(servers) > 0 {
		where = " (" + servers[0] + ")"
	}
	return fmt.Errorf("this machine is an agent, which has no kubeconfig: run this on the server's machine%s, or say "+
		"with --kubeconfig which one to talk to the cluster with", where)
}

// holdsAgent reports whether a data folder is that of a node alone.
func holdsAgent(dataDir string) (bool, error) {
	paths := datadir.At(dataDir)
	isServers, err := exists(paths.Server())
	if err != nil || isServers {
		return false, err
	}
	return exists(paths.Agent().Identity())
}

// kubectlWithoutCluster are the commands of kubectl that need no cluster.
var kubectlWithoutCluster = []string{"completion", "config", "help", "kustomize", "options", "plugin", "__complete",
	"__completeNoDesc"}

// needsKubeconfig reports whether a call of kubectl needs one that its arguments do not name.
func needsKubeconfig(args []string) bool {
	command := ""
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		switch {
		case arg == "--":
			return command != ""
		case slices.Contains([]string{"-h", "--help", "--kubeconfig", "-s", "--server", "--client", "--local"}, name),
			arg == "--dry-run=client":
			return false
		case command == "" && !strings.HasPrefix(arg, "-"):
			command = arg
		}
	}
	return command != "" && !slices.Contains(kubectlWithoutCluster, command)
}

// hasKubeconfig reports whether kubectl finds a cluster by itself: in the user's home folder, or as
// the service account of the pod it runs in. If that cannot be told, kubectl will.
func (p program) hasKubeconfig() bool {
	if host, _ := p.lookupEnv("KUBERNETES_SERVICE_HOST"); host != "" {
		return true
	}
	home, _ := p.lookupEnv("HOME")
	there, err := exists(filepath.Join(home, ".kube", "config"))
	return home != "" && (err != nil || there)
}

// kubectlEnv is the environment of kubectl: with this machine's kubeconfig unless the user has one.
func (p program) kubectlEnv(args []string) ([]string, error) {
	env := os.Environ()
	if list, _ := p.lookupEnv("KUBECONFIG"); list != "" {
		return env, nil
	}
	file, err := p.machineSetting("kubeconfig-output", server.DefaultKubeconfigOutput)
	missing := false
	if err == nil {
		var f *os.File
		if f, err = os.Open(file); err == nil {
			_ = f.Close()
			// An empty one would be found first.
			env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, "KUBECONFIG=") })
			return append(env, "KUBECONFIG="+file), nil
		}
		missing = errors.Is(err, fs.ErrNotExist)
		err = fmt.Errorf("read kubeconfig: %w", err)
	}
	switch {
	case !needsKubeconfig(args), (missing || errors.Is(err, fs.ErrPermission)) && p.hasKubeconfig():
		return env, nil
	case missing:
		return nil, p.missingKubeconfig(file)
	}
	return nil, err
}

// toolMayConnect refuses a call of ctr or crictl that would connect to a socket this user may not
// use.
func (p program) toolMayConnect(args []string, socket string) error {
	if len(args) == 0 {
		return nil
	}
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		if slices.Contains([]string{"-a", "--address", "-r", "--runtime-endpoint", "-h", "--help", "-v", "--version",
			"help"}, name) {
			return nil
		}
	}
	// Any other error is for the tool to find and name.
	if err := unix.Faccessat(unix.AT_FDCWD, socket, unix.R_OK|unix.W_OK, unix.AT_EACCESS); errors.Is(err,
		fs.ErrPermission) {
		return fmt.Errorf("connect to the container runtime at %s: %w", socket, err)
	}
	return nil
}
