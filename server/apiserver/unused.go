package apiserver

import "github.com/mote-dev/mote/internal/upstreamflag"

// unusedFlags are kube-apiserver's flags that mote has no use for: what they set is opened or made
// before upstream's options are read.
func unusedFlags() upstreamflag.Unused {
	flags := upstreamflag.Unused{}
	for flag, why := range map[string]string{
		"secure-port":              "set --https-listen-port",
		"bind-address":             "set --bind-address",
		"permit-port-sharing":      "mote opens the port itself",
		"permit-address-sharing":   "mote opens the port itself",
		"etcd-servers":             "set --datastore-endpoint",
		"etcd-cafile":              "set --datastore-cafile",
		"etcd-certfile":            "set --datastore-certfile",
		"etcd-keyfile":             "set --datastore-keyfile",
		"endpoint-reconciler-type": "servers keep the addresses behind the service kubernetes themselves",
	} {
		flags.Add(flag, why)
	}
	return flags
}
