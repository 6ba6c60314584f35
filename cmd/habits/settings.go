package habits

import "strings"

// Page is the documentation of all of them.
const Page = "docs/coming-from-k3s.md"

// settings are flags and keys of files of other distributions, without dashes in front. Those that
// mote has under the same name are not here.
var settings = map[string]string{
	// k3s: servers and their store
	"advertise-address": "use --node-ip; more addresses for the certificate with --tls-san",
	"advertise-port":    "use --https-listen-port: the API has one port",
	"agent-token":       "use --token: the same token lets agents join, and cannot do more",
	"agent-token-file":  "use --token-file: the same token lets agents join, and cannot do more",
	"cluster-init": "several servers share an etcd: use --datastore-endpoint, see " +
		"docs/several-servers.md",
	"cluster-reset":              "restore a snapshot with `mote snapshot restore`, see docs/store.md",
	"cluster-reset-restore-path": "restore a snapshot with `mote snapshot restore FILE`, see docs/store.md",
	"etcd-arg":                   "there is no etcd in the process, see docs/store.md",
	"kine-tls":                   "there is no kine; TLS to an etcd is --datastore-cafile and its neighbours",
	"service-node-port-range":    "use --kube-apiserver-arg service-node-port-range=FROM-TO",
	"tls-san-security":           "names are in the certificate only if --tls-san or --node-ip has them",
	"write-kubeconfig":           "use --kubeconfig-output",
	"write-kubeconfig-mode":      "use --kubeconfig-mode",
	"write-kubeconfig-group":     "use --kubeconfig-group",
	"secrets-encryption":         "use --kube-apiserver-arg encryption-provider-config=FILE, see docs/configuration.md",
	"secrets-encryption-provider": "use --kube-apiserver-arg encryption-provider-config=FILE, see " +
		"docs/configuration.md",
	"kube-cloud-controller-manager-arg": "there is no cloud controller manager; remove it",
	"tls-min-version":                   "use --kube-apiserver-arg tls-min-version=VERSION",

	// k3s: network
	"flannel-backend":      "use --network-backend: vxlan, host-gw or none, see docs/networking.md",
	"flannel-iface":        "use --node-ip with an address of that interface",
	"flannel-external-ip":  "use --node-external-ip on the agents, see docs/networking.md",
	"flannel-ipv6-masq":    "pods are masqueraded in both families; remove it",
	"flannel-conf":         "the pod network is mote's own: use --network-backend, see docs/networking.md",
	"flannel-cni-conf":     "the pod network is mote's own: use --network-backend, see docs/networking.md",
	"egress-selector-mode": "nodes open tunnels to the servers, always; remove it",
	"servicelb-namespace":  "load balancers need no pods and no namespace, see docs/networking.md; remove it",
	"node-internal-dns":    "use --node-name with a name that DNS knows",
	"node-external-dns":    "use --node-external-ip",
	"vpn-auth":             "set up the VPN on the host and use --node-ip with its address",
	"vpn-auth-file":        "set up the VPN on the host and use --node-ip with its address",
	"lb-server-port":       "agents choose among the servers themselves; remove it",
	"disable-apiserver-lb": "agents choose among the servers themselves; remove it",
	"multus":               "there is one pod network, see docs/networking.md",

	// k3s: components
	"disable-network-policy":     "use --disable network-policy",
	"disable-kube-proxy":         "the service proxy is always there; remove it",
	"disable-cloud-controller":   "there is no cloud controller manager; remove it",
	"disable-helm-controller":    "there is no Helm controller; remove it",
	"disable-scheduler":          "each server has the scheduler; remove it",
	"disable-apiserver":          "each server has the API server; remove it",
	"disable-controller-manager": "each server has the controllers; remove it",
	"disable-etcd":               "there is no etcd in the process; remove it",
	"helm-job-image":             "there is no Helm controller; remove it",
	"default-local-storage-path": "there is no storage provisioner: install one, such as local-path-provisioner",
	"embedded-registry":          "nodes do not share images: import them, or use a mirror, see docs/images.md",

	// k3s: nodes
	"docker":                     "containerd is in mote: import images with `mote image import`, see docs/images.md",
	"container-runtime-endpoint": "containerd is in mote, see docs/runtime.md; remove it",
	"image-service-endpoint":     "containerd is in mote, see docs/runtime.md; remove it",
	"default-runtime":            "pods run with runc, see docs/runtime.md; remove it",
	"nonroot-devices":            "there is no such setting of containerd; remove it",
	"snapshotter":                "mote chooses the snapshotter the disk allows, see docs/runtime.md; remove it",
	"pause-image":                "the pause image is in mote, see docs/runtime.md; remove it",
	"private-registry":           "use --registries-file",
	"system-default-registry": "mote pulls no images of its own; mirrors are in --registries-file, see " +
		"docs/images.md",
	"airgap-extra-registry": "import images with `mote image import`, see docs/images.md",
	"disable-default-registry-endpoint": "list the mirrors to use in --registries-file, see " +
		"docs/images.md",
	"image-credential-provider-bin-dir": "use --kubelet-arg image-credential-provider-bin-dir=DIR",
	"image-credential-provider-config":  "use --kubelet-arg image-credential-provider-config=FILE",
	"protect-kernel-defaults":           "use --kubelet-arg protect-kernel-defaults=true",
	"with-node-id":                      "names are kept apart by the node secret: choose one with --node-name",
	"selinux":                           "there is no SELinux policy for mote; remove it",
	"rootless":                          "mote runs as root; remove it",
	"prefer-bundled-bin":                "mote uses the tools inside it, always; remove it",
	"bind-address-agent":                "use --node-ip",

	// k3s: logs and diagnosis
	"log":                 "mote writes its log to standard error: redirect it, or use the journal",
	"alsologtostderr":     "mote writes its log to standard error, always; remove it",
	"v":                   "use --debug",
	"vmodule":             "use --debug",
	"enable-pprof":        "use --kube-apiserver-arg profiling=true, which is the default; remove it",
	"supervisor-metrics":  "metrics are below /metrics of the API server; remove it",
	"etcd-expose-metrics": "metrics are below /metrics of the API server; remove it",

	// k0s
	"enable-worker":      "a server is a node, too, unless --disable-agent is given; remove it",
	"single":             "a server is a cluster of its own; remove it",
	"no-taints":          "the node of a server has no taint; remove it",
	"kubelet-extra-args": "use --kubelet-arg flag=value, once for each",
	"kubelet-root-dir":   "use --data-dir: all of mote's files are there",
	"labels":             "use --node-label",
	"taints":             "use --node-taint",
	"disable-components": "use --disable, see docs/architecture.md for the names",
	"iptables-mode":      "use --kube-proxy-arg proxy-mode=nftables or iptables",
	"profile":            "use --kubelet-arg config=FILE for nodes of one kind",
	"status-socket":      "`mote status` finds the running mote by --data-dir; remove it",

	// kubeadm
	"pod-network-cidr":             "use --cluster-cidr",
	"service-dns-domain":           "use --cluster-domain",
	"apiserver-advertise-address":  "use --node-ip",
	"apiserver-bind-port":          "use --https-listen-port",
	"apiserver-cert-extra-sans":    "use --tls-san",
	"control-plane-endpoint":       "use --tls-san with that name, see docs/several-servers.md",
	"upload-certs":                 "servers on one etcd share their keys under the token, see docs/several-servers.md",
	"discovery-token-ca-cert-hash": "the token's long form (M10…) names the cluster: `mote token create` prints it",
	"discovery-token":              "use --token",
	"cri-socket":                   "containerd is in mote, see docs/runtime.md; remove it",
	"ignore-preflight-errors":      "`mote check` says what to do about each; remove it",
	"image-repository":             "mote pulls no images of its own; remove it",
	"skip-phases":                  "see docs/configuration.md for what can be disabled",
}

// short are the one-letter flags of k3s.
var short = map[string]string{
	"t": "--token", "s": "--server", "d": "--data-dir", "c": "--config", "o": "--kubeconfig-output",
	"i": "--node-ip", "l": "a redirected standard error", "v": "--debug",
}

// Setting answers an unknown flag or key of a file; "" if it is nobody's habit.
func Setting(name string) string {
	name = strings.ReplaceAll(strings.ToLower(strings.TrimSuffix(name, "+")), "_", "-")
	if answer, known := settings[name]; known {
		return answer
	}
	switch {
	case strings.HasPrefix(name, "etcd-s3"):
		return "copy the files of `mote snapshot save` yourself, see docs/store.md"
	case strings.HasPrefix(name, "etcd-"), name == "snapshot-compress":
		return "snapshots are `mote snapshot`, see docs/store.md"
	}
	return ""
}

// Short answers an unknown one-letter flag.
func Short(name string) string {
	if long, known := short[name]; known {
		return "use " + long
	}
	return ""
}

// variables are environment variables of k3s whose names differ from those of mote's settings.
var variables = map[string]string{
	"K3S_URL":             "use MOTE_SERVER",
	"K3S_CONFIG_FILE":     "use MOTE_CONFIG",
	"K3S_KUBECONFIG_MODE": "use MOTE_KUBECONFIG_MODE",
	"K3S_AGENT_TOKEN":     "use MOTE_TOKEN",
	"K3S_CLUSTER_SECRET":  "use MOTE_TOKEN",
}

// Variable answers an environment variable of k3s, given the variables that mote has; "" if it is
// none of k3s'.
func Variable(name string, known func(string) bool) string {
	rest, ok := strings.CutPrefix(name, "K3S_")
	if !ok {
		return ""
	}
	if answer, found := variables[name]; found {
		return answer
	}
	if own := "MOTE_" + rest; known(own) {
		return "use " + own
	}
	if answer := Setting(rest); answer != "" {
		return answer
	}
	return "remove it; mote's variables are MOTE_ and the name of a setting, see " + Page
}
