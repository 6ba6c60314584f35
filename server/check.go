package server

import (
	"errors"
	"fmt"

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
	return errors.Join(
		apiserver.Check(c.Cluster.ServiceCIDRs, c.KubeAPIServerArgs),
		controllers.Check(c.Cluster, c.KubeControllerManagerArgs),
		scheduler.Check(c.KubeSchedulerArgs))
}

func (c Config) setFeatureGates() error {
	return upstream.SetFeatureGates(upstream.ServerGates(c.DatastoreEndpoint != ""),
		upstream.Args{Setting: "kube-controller-manager-arg", Args: c.KubeControllerManagerArgs},
		upstream.Args{Setting: "kube-scheduler-arg", Args: c.KubeSchedulerArgs},
		upstream.Args{Setting: "kube-apiserver-arg", Args: c.KubeAPIServerArgs})
}
