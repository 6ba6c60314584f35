package agent

import (
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/internal/upstream"
)

// Check joins what is wrong with a config that Validate accepts, but that its parts would refuse
// only after others have run: it reads the files that settings name, and tries the kubelet's
// settings with upstream's own checks. It sets the process's feature gates, which those read, and
// changes nothing on the host.
func (c Config) Check() error {
	if err := c.setFeatureGates(); err != nil {
		return err
	}
	return errors.Join(c.CheckRegistries(), kubelet.Check(c.labels(), c.taints(), c.KubeletArgs))
}

func (c Config) setFeatureGates() error {
	return upstream.SetFeatureGates(nil, upstream.Args{Setting: "kubelet-arg", Args: c.KubeletArgs})
}

// labels are those of NodeLabels.
func (c Config) labels() map[string]string {
	labels := make(map[string]string, len(c.NodeLabels))
	for _, l := range c.NodeLabels {
		key, value, _ := strings.Cut(l, "=")
		labels[key] = value
	}
	return labels
}

// taints are those of NodeTaints.
func (c Config) taints() []corev1.Taint {
	var taints []corev1.Taint
	for _, t := range c.NodeTaints {
		spec, effect, _ := strings.Cut(t, ":")
		key, value, _ := strings.Cut(spec, "=")
		taints = append(taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return taints
}
