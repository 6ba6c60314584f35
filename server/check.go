package server

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server/apiserver"
	"github.com/mote-dev/mote/server/controllers"
	"github.com/mote-dev/mote/server/scheduler"
)

// Check joins what is wrong with a config that Validate accepts, but that its parts would refuse
// only after others have run: it tries the settings of upstream's components with upstream's own
// checks, and reads the files they name. It sets the process's feature gates, which those read, and
// changes nothing on the host.
func (c Config) Check() error {
	if err := c.setFeatureGates(); err != nil {
		return err
	}
	var errs []error
	// There is one version a process, and the API server's flags set it.
	for setting, args := range map[string][]string{
		"kube-controller-manager-arg": c.KubeControllerManagerArgs,
		"kube-scheduler-arg":          c.KubeSchedulerArgs,
	} {
		for _, arg := range args {
			if name, _ := upstreamflag.Split(arg); name == "emulated-version" || name == "min-compatibility-version" {
				errs = append(errs,
					fmt.Errorf("%s %q: the whole server has one version: write it as kube-apiserver-arg", setting, arg))
			}
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return errors.Join(c.checkFiles(),
		apiserver.Check(c.Cluster.ServiceCIDRs, c.KubeAPIServerArgs),
		controllers.Check(c.Cluster, c.KubeControllerManagerArgs),
		scheduler.Check(c.KubeSchedulerArgs))
}

// checkFiles looks at the files that settings name.
func (c Config) checkFiles() error {
	var errs []error
	// Written once the API answers.
	info, err := os.Stat(c.KubeconfigOutput)
	switch {
	case err == nil && info.IsDir():
		errs = append(errs, fmt.Errorf("kubeconfig-output %s is a folder: give a file", c.KubeconfigOutput))
	case errors.Is(err, syscall.ENOTDIR):
		errs = append(errs, fmt.Errorf("kubeconfig-output %s lies below a file: give another", c.KubeconfigOutput))
	}
	if c.DatastoreEndpoint != "" {
		_, err := c.etcdTLS()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c Config) setFeatureGates() error {
	return upstream.SetFeatureGates(upstream.ServerGates(c.DatastoreEndpoint != ""),
		upstream.Args{Setting: "kube-controller-manager-arg", Args: c.KubeControllerManagerArgs},
		upstream.Args{Setting: "kube-scheduler-arg", Args: c.KubeSchedulerArgs},
		upstream.Args{Setting: "kube-apiserver-arg", Args: c.KubeAPIServerArgs})
}
