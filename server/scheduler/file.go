package scheduler

import (
	"errors"
	"fmt"
	"os"
	"slices"

	cliflag "k8s.io/component-base/cli/flag"
	"sigs.k8s.io/yaml"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

const (
	inProcess = "the scheduler is in the server's process, without a port or connection of its own"
	oneLog    = "mote has one log: set --log-format or --debug"
	lead      = "servers on one etcd decide who schedules, and a server alone always does"
)

// unusedFlags are kube-scheduler's flags that mote has no use for.
func unusedFlags(sections cliflag.NamedFlagSets) upstreamflag.Unused {
	flags := upstreamflag.Unused{}
	for name, why := range map[string]string{
		"secure serving": inProcess, "authentication": inProcess, "authorization": inProcess, "deprecated": inProcess,
		"leader election": lead, "metrics": "the API server has all metrics of the process", "logs": oneLog,
	} {
		flags.AddSection(sections.FlagSet(name), why)
	}
	flags.Add("master", inProcess)
	flags.Add("write-config-to", "it would end the process")
	flags.Add("profiling", inProcess, "false")
	flags.Add("contention-profiling", inProcess, "false")
	return flags
}

// unusedFields are the fields of a KubeSchedulerConfiguration that mote has no use for.
var unusedFields = []struct {
	key, why string
	same     []string
}{
	{key: "clientConnection", why: inProcess},
	{key: "leaderElection", why: lead, same: []string{"map[leaderElect:false]"}},
	{key: "enableProfiling", why: inProcess, same: []string{"false"}},
	{key: "enableContentionProfiling", why: inProcess, same: []string{"false"}},
	{key: "delayCacheUntilActive", why: lead, same: []string{"false"}},
}

// refuseUnused refuses what a configuration file sets in vain, all of it in one go. Upstream's
// loader looks at the rest.
func refuseUnused(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var content map[string]any
	if err := yaml.Unmarshal(data, &content); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	var errs []error
	for _, f := range unusedFields {
		value, set := content[f.key]
		if set && value != nil && !slices.Contains(f.same, fmt.Sprint(value)) {
			errs = append(errs, fmt.Errorf("%s sets %s, which has no effect in mote: remove it: %s", path, f.key,
				f.why))
		}
	}
	return errors.Join(errs...)
}
