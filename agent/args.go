package agent

import "github.com/mote-dev/mote/agent/kubelet"

// KubeletArgs returns the arguments for [Config.KubeletArgs], with what the configuration files of
// the kubelet that they name say about other parts of a node in front.
func KubeletArgs(args []string) ([]string, error) { return kubelet.ExpandArgs(args) }
