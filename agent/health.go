package agent

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// Health is the state of a node that has its servers on other machines.
type Health struct {
	// Node is the name the node has or will register under.
	Node string `json:"node"`
	// Ready is the node's Ready condition as last received from the API, Reason why it is not true.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Server is the one in use, https://HOST:PORT; empty while none answers, for ServerFault.
	Server      string `json:"server,omitempty"`
	ServerFault string `json:"serverFault,omitempty"`
	// Tunnels names the servers that reach this node through a tunnel.
	Tunnels []string `json:"tunnels"`
}

// OK reports whether all is well: the node is ready, a server answers, and it can reach the node.
func (h Health) OK() bool { return h.Ready && h.Server != "" && len(h.Tunnels) > 0 }

// Health returns the state of a node without a server in its process.
func (a *Agent) Health() Health {
	if health := a.health.Load(); health != nil {
		return (*health)()
	}
	return Health{Node: a.config.NodeName, Reason: "it has not joined yet", ServerFault: "it has not joined yet"}
}

// readiness returns the Ready condition of a node, and why it is not true.
func readiness(nodes corelisters.NodeLister, name string) (ready bool, reason string) {
	n, err := nodes.Get(name)
	switch {
	case apierrors.IsNotFound(err):
		return false, "the API has no such node yet"
	case err != nil:
		return false, err.Error()
	}
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return true, ""
		}
		return false, c.Reason + ": " + c.Message
	}
	return false, "the kubelet has not said yet"
}
