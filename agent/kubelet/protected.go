package kubelet

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mote-dev/mote/internal/upstreamflag"
)

// own is a setting of the kubelet that is mote's: something else of mote relies on its value, or
// has no use for it.
type own struct {
	// key is its path in a KubeletConfiguration.
	key string
	// same are the values that ask for nothing else than mote does.
	same []string
	// why ends the message, with what to do if there is something.
	why string
	// flag is the kubelet's flag, where that would have no effect at all. Other flags are the
	// escape hatch: they can break what relies on the value, and are not refused.
	flag string
}

// owned are the kubelet's settings that are mote's. Those without a key have only a flag.
var owned = []own{
	{key: "containerRuntimeEndpoint", why: "the container runtime is in mote's process",
		flag: "container-runtime-endpoint"},
	{key: "imageServiceEndpoint", why: "the container runtime is in mote's process",
		flag: "image-service-endpoint"},
	{key: "podLogsDir", why: "`mote uninstall` removes the logs from where mote puts them"},
	{key: "tlsCertFile", why: "mote makes and renews the certificate"},
	{key: "tlsPrivateKeyFile", why: "mote makes and renews the certificate"},
	{key: "serverTLSBootstrap", same: []string{"true"}, why: "mote makes and renews the certificate"},
	{
		key:  "rotateCertificates",
		same: []string{"true"},
		why:  "mote renews the certificate",
		flag: "rotate-certificates",
	},
	{key: "authentication.x509.clientCAFile", why: "it is the cluster's own authority"},
	{key: "authentication.anonymous.enabled", same: []string{"false"}, why: "a kubelet lets nobody in unasked"},
	{key: "authentication.webhook.enabled", same: []string{"true"}, why: "the API server knows who may ask a kubelet"},
	{key: "authorization.mode", same: []string{"Webhook"}, why: "the API server knows who may ask a kubelet"},
	{key: "clusterDomain", why: "set --cluster-domain of `mote server`"},
	{key: "clusterDNS", why: "set --cluster-dns of `mote server`"},
	{key: "cgroupRoot", why: "it follows from --data-dir"},
	{key: "registerNode", same: []string{"true"}, why: "mote waits for the node to register"},
	{key: "registerWithTaints", why: "set --node-taint"},
	{key: "enableServer", same: []string{"true"}, why: "logs and exec reach pods through it"},
	{
		key:  "healthzPort",
		same: []string{"0"},
		why:  "the kubelet's only port serves /healthz",
		flag: "healthz-port",
	},
	{key: "healthzBindAddress", why: "the kubelet's only port serves /healthz", flag: "healthz-bind-address"},
	{
		key:  "kubeAPIQPS",
		same: []string{"0"},
		why:  "requests to the API server are not limited",
		flag: "kube-api-qps",
	},
	{
		key:  "kubeAPIBurst",
		same: []string{"0"},
		why:  "requests to the API server are not limited",
		flag: "kube-api-burst",
	},
	{key: "contentType", why: "mote chooses it", flag: "kube-api-content-type"},
	{
		key:  "podCIDR",
		why:  "the cluster gives each node its range",
		flag: "pod-cidr",
	},
	{key: "logging.format", same: []string{"text"}, why: "mote has one log: set --log-format"},
	{key: "logging.verbosity", same: []string{"0"}, why: "mote has one log: set --debug"},
	{key: "logging.vmodule", why: "mote has one log: set --debug"},
	{key: "logging.flushFrequency", same: []string{"0", "0s"}, why: "mote has one log"},
	{why: "mote has one log: set --log-format", flag: "logging-format"},
	{why: "mote has one log: set --debug", flag: "v"},
	{why: "mote has one log: set --debug", flag: "vmodule"},
	{why: "mote has one log", flag: "log-flush-frequency"},
	{why: "set --node-name", flag: "hostname-override"},
	{why: "mote connects the kubelet", flag: "kubeconfig"},
	{why: "a node joins with --token", flag: "bootstrap-kubeconfig"},
	{why: "mote locks its data folder", flag: "lock-file"},
	{why: "mote locks its data folder", flag: "exit-on-lock-contention"},
}

// refuseOwn refuses what a configuration file sets and mote owns, all of it in one go.
func refuseOwn(path string, content map[string]any) error {
	var errs []error
	for _, o := range owned {
		value, set := lookup(content, o.key)
		if !set || slices.Contains(o.same, fmt.Sprint(value)) {
			continue
		}
		errs = append(errs, fmt.Errorf("%s sets %s, which mote sets itself: remove it from the file: %s", path, o.key,
			o.why))
	}
	return errors.Join(errs...)
}

// lookup finds a value by its path. What means "not set" to the kubelet's decoder does here, too.
func lookup(content map[string]any, key string) (any, bool) {
	if key == "" {
		return nil, false
	}
	first, rest, deeper := strings.Cut(key, ".")
	value, set := content[first]
	if deeper {
		inner, _ := value.(map[string]any)
		return lookup(inner, rest)
	}
	switch v := value.(type) {
	case nil:
		return nil, false
	case string:
		return v, v != ""
	case []any:
		return v, len(v) > 0
	case map[string]any:
		return v, len(v) > 0
	}
	return value, set
}

// unusedFlags are the flags that would have no effect.
func unusedFlags() upstreamflag.Unused {
	flags := upstreamflag.Unused{}
	for _, o := range owned {
		if o.flag != "" {
			flags.Add(o.flag, o.why, o.same...)
		}
	}
	return flags
}
