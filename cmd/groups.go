package cmd

import (
	"slices"

	"github.com/mote-dev/mote/cmd/settings"
)

// settingGroups are the headings of a role's settings in its help, in their order.
var settingGroups = []struct {
	name     string
	settings []string
}{
	{"Cluster to join", []string{"server", "token", "token-file"}},
	{"This machine", []string{"config", "data-dir", "node-name", "node-ip", "node-external-ip", "bind-address",
		"https-listen-port", "tls-san", "resolv-conf"}},
	{"Cluster network, the same on all servers", []string{"cluster-cidr", "service-cidr", "cluster-dns",
		"cluster-domain", "network-backend"}},
	{"Node", []string{"node-label", "node-taint", "registries-file"}},
	{"Kubeconfig", []string{"kubeconfig-output", "kubeconfig-mode", "kubeconfig-group"}},
	{"Store", []string{"datastore-durability", "datastore-endpoint", "datastore-cafile", "datastore-certfile",
		"datastore-keyfile"}},
	{"Parts, and flags of Kubernetes' own components", []string{"disable", "disable-agent", "kubelet-arg",
		"kube-proxy-arg", "kube-apiserver-arg", "kube-controller-manager-arg", "kube-scheduler-arg"}},
	{"Log", []string{"log-format", "debug"}},
}

// grouped orders the settings of a role by their groups. A setting without one comes last.
func grouped(all []settings.Setting) []settings.Setting {
	out := make([]settings.Setting, 0, len(all))
	for _, g := range settingGroups {
		for _, name := range g.settings {
			i := slices.IndexFunc(all, func(s settings.Setting) bool { return s.Name == name })
			if i >= 0 {
				s := all[i]
				s.Group = g.name
				out = append(out, s)
			}
		}
	}
	for _, s := range all {
		if !slices.ContainsFunc(out, func(o settings.Setting) bool { return o.Name == s.Name }) {
			out = append(out, s)
		}
	}
	return out
}
