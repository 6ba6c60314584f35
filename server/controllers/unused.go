package controllers

import (
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

const (
	inProcess   = "the controllers are in the server's process, without a port or connection of their own"
	oneLog      = "mote has one log: set --log-format or --debug"
	lead        = "servers on one etcd decide whose controllers run, and those of a server alone always do"
	allTogether = "the controllers start together with the server and end with it"
)

// unusedFlags are kube-controller-manager's flags that mote has no use for.
func unusedFlags(sections cliflag.NamedFlagSets) upstreamflag.Unused {
	flags := upstreamflag.Unused{}
	for name, why := range map[string]string{
		"secure serving": inProcess, "authentication": inProcess, "authorization": inProcess, "debugging": inProcess,
		"deprecated": inProcess, "misc": inProcess, "leader-migration": lead, "logs": oneLog,
		"metrics": "the API server has all metrics of the process",
	} {
		flags.AddSection(sections.FlagSet(name), why)
	}
	for _, name := range []string{"kube-api-content-type", "kube-api-qps", "kube-api-burst"} {
		flags.Add(name, inProcess)
	}
	for _, name := range []string{"leader-elect-lease-duration", "leader-elect-renew-deadline",
		"leader-elect-retry-period", "leader-elect-resource-lock", "leader-elect-resource-name",
		"leader-elect-resource-namespace"} {
		flags.Add(name, lead)
	}
	flags.Add("leader-elect", lead, "false")
	flags.Add("min-resync-period", "all parts of a server share their informers")
	flags.Add("controller-start-interval", allTogether, "0", "0s")
	flags.Add("controller-shutdown-timeout", allTogether)
	flags.Add("profiling", inProcess, "false")
	flags.Add("contention-profiling", inProcess, "false")
	return flags
}
