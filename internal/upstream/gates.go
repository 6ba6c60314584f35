package upstream

import (
	"fmt"
	"strings"
	"sync"

	genericfeatures "k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	"k8s.io/kubernetes/pkg/features"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

// Gates are values of feature gates by name.
type Gates map[featuregate.Feature]bool

// defaultGates are mote's own defaults, the same in every process, so that all nodes of a cluster
// behave alike: beside a server, on a machine of its own, in a test.
var defaultGates = Gates{
	// NodePorts answer on localhost, as they do with kube-proxy's iptables mode.
	features.KubeProxyNFTablesLocalhostNodePorts: true,
}

// ServerGates are the gates of a control plane. With the identity lease, the servers of one cluster
// find each other and forward requests that only a newer or older one can answer. A single server
// has no use for it, and it would be a write to the disk every ten seconds.
func ServerGates(several bool) Gates {
	return Gates{
		genericfeatures.APIServerIdentity:                   several,
		genericfeatures.UnknownVersionInteroperabilityProxy: several,
	}
}

// Args are the "flag=value" arguments a user gave for one of upstream's components.
type Args struct {
	// Setting is mote's name for the list, for error messages.
	Setting string
	Args    []string
}

// SetFeatureGates sets mote's defaults if nobody did yet, then own, then every feature-gates flag
// in args; later ones win. There is one set of gates per process: a gate given to one component
// reaches all of them.
func SetFeatureGates(own Gates, args ...Args) error {
	if err := setDefaultGates(); err != nil {
		return err
	}
	if err := setGates(own); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	for _, a := range args {
		for _, arg := range a.Args {
			name, value := upstreamflag.Split(arg)
			if name != "feature-gates" {
				continue
			}
			gates, err := parseGates(value)
			if err == nil {
				err = setGates(gates)
			}
			if err != nil {
				return fmt.Errorf("%s %q: %w", a.Setting, arg, err)
			}
		}
	}
	return nil
}

var setDefaultGates = sync.OnceValue(func() error {
	if err := setGates(defaultGates); err != nil {
		return fmt.Errorf("set default feature gates: %w", err)
	}
	return nil
})

// setGates refuses names that upstream does not know before it sets any: upstream's own setter
// remembers them and then fails on every later call.
func setGates(gates Gates) error {
	known := utilfeature.DefaultMutableFeatureGate.GetAllVersioned()
	named := make(map[string]bool, len(gates))
	for name, on := range gates {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
		named[string(name)] = on
	}
	if len(named) == 0 {
		return nil
	}
	return utilfeature.DefaultMutableFeatureGate.SetFromMap(named)
}

// parseGates reads a feature-gates flag as kubelet and API server take it: "A=true,kube:B=false".
// Gates of a component other than kube are left to the API server, which rejects them.
func parseGates(text string) (Gates, error) {
	out := Gates{}
	for word := range strings.SplitSeq(text, ",") {
		if component, rest, ok := strings.Cut(word, ":"); ok {
			if strings.TrimSpace(component) != basecompatibility.DefaultKubeComponent {
				continue
			}
			word = rest
		}
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		name, value, _ := strings.Cut(word, "=")
		switch strings.TrimSpace(value) {
		case "true":
			out[featuregate.Feature(strings.TrimSpace(name))] = true
		case "false":
			out[featuregate.Feature(strings.TrimSpace(name))] = false
		default:
			return nil, fmt.Errorf("feature gate %q is neither true nor false", word)
		}
	}
	return out, nil
}

// NewTrial returns a copy of the process's feature gates and versions, for flags to be tried on.
// The registry that upstream's options come with belongs to the process, and remembers what was
// set.
func NewTrial() (basecompatibility.ComponentGlobalsRegistry, error) {
	gates := utilfeature.DefaultMutableFeatureGate.DeepCopy()
	versions := compatibility.DefaultBuildEffectiveVersion()
	versions.SetEmulationVersion(gates.EmulationVersion())
	versions.SetMinCompatibilityVersion(gates.MinCompatibilityVersion())
	trial := basecompatibility.NewComponentGlobalsRegistry()
	if err := trial.Register(basecompatibility.DefaultKubeComponent, versions, gates); err != nil {
		return nil, fmt.Errorf("copy versions and feature gates: %w", err)
	}
	return trial, nil
}

// SetVersions makes the versions take effect that the API server's flags asked to emulate, and
// evaluates the gates for them.
func SetVersions() error {
	if err := compatibility.DefaultComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("set versions and feature gates: %w", err)
	}
	return nil
}
