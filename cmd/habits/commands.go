package habits

// components are what other distributions bring along, by the names under which they are disabled
// or enabled.
var components = map[string]string{
	"traefik":                 "mote brings no ingress controller, so there is nothing to disable",
	"ingress":                 "mote brings no ingress controller, so there is nothing to disable",
	"servicelb":               "mote's load balancer for services is called load-balancer",
	"metallb":                 "mote's load balancer for services is called load-balancer",
	"local-storage":           "mote brings no storage provisioner, so there is nothing to disable",
	"hostpath-storage":        "mote brings no storage provisioner, so there is nothing to disable",
	"storage":                 "mote brings no storage provisioner, so there is nothing to disable",
	"metrics-server":          "mote brings no metrics server, so there is nothing to disable",
	"runtimes":                "mote brings no runtime classes, so there is nothing to disable",
	"ccm":                     "mote has no cloud controller manager, so there is nothing to disable",
	"cloud-controller":        "mote has no cloud controller manager, so there is nothing to disable",
	"helm-controller":         "mote has no Helm controller, so there is nothing to disable",
	"helm":                    "mote has no Helm controller, so there is nothing to disable",
	"autopilot":               "mote has no autopilot, so there is nothing to disable",
	"dashboard":               "mote brings no dashboard, so there is nothing to disable",
	"registry":                "mote brings no registry, so there is nothing to disable",
	"coredns":                 "mote's DNS server is called dns",
	"kube-dns":                "mote's DNS server is called dns",
	"kube-proxy":              "the service proxy is always there",
	"konnectivity-server":     "the tunnels to the nodes are always there",
	"kube-scheduler":          "each server has the scheduler",
	"kube-controller-manager": "each server has the controllers",
	"flannel":                 "the pod network is --network-backend",
	"networkpolicy":           "it is called network-policy",
}

// Component answers the name of a component that mote does not have under that name.
func Component(name string) string { return components[name] }

// commands are words behind the name of another distribution's executable.
var commands = map[string]string{
	// k3s
	"etcd-snapshot":       "use `mote snapshot`: save, list, check and restore",
	"secrets-encrypt":     "use --kube-apiserver-arg encryption-provider-config=FILE, see docs/configuration.md",
	"check-config":        "use `mote check`",
	"killall":             "use `mote stop --pods`",
	"k3s-killall":         "use `mote stop --pods`",
	"k3s-killall.sh":      "use `mote stop --pods`",
	"k3s-uninstall":       "use `mote uninstall --yes`",
	"k3s-uninstall.sh":    "use `mote uninstall --yes`",
	"k3s-agent-uninstall": "use `mote uninstall --yes`",
	"k3s":                 "use `mote`, see " + Page,
	"cluster-reset":       "restore a snapshot with `mote snapshot restore`",

	// k0s
	"controller": "use `mote server`",
	"worker":     "use `mote agent`",
	"install":    "use scripts/install.sh, see docs/install.md",
	"sysinfo":    "use `mote check`",
	"backup":     "use `mote snapshot save`",
	"restore":    "use `mote snapshot restore`",
	"airgap":     "images are imported with `mote image import`, see docs/images.md",
	"ctl":        "use `mote kubectl`",
	"etcd":       "there is no etcd in the process, see docs/store.md",
	"config":     "settings are in /etc/mote/config.yaml, see docs/configuration.md",

	// kubeadm
	"init":    "use `mote server`",
	"join":    "use `mote agent --server https://HOST:6443 --token TOKEN`",
	"upgrade": "replace the executable and start it again, see docs/install.md",
	"certs":   "certificates renew themselves, see docs/certificates.md",

	// MicroK8s
	"add-node":      "use `mote token create`",
	"leave":         "use `mote uninstall --yes` on the node, then `mote node forget NAME` on the server",
	"remove-node":   "use `mote node forget NAME`",
	"enable":        "mote brings no add-ons: apply them with `mote kubectl` or Helm",
	"disable":       "use --disable of `mote server`, see docs/configuration.md",
	"inspect":       "use `mote status` and `mote check`",
	"reset":         "use `mote uninstall --yes`",
	"start":         "use `mote server` or `mote agent`, or start the service",
	"restart":       "stop the service and start it again: pods run on",
	"dbctl":         "use `mote snapshot`",
	"refresh-certs": "certificates renew themselves, see docs/certificates.md",
	"addons":        "mote brings no add-ons: apply them with `mote kubectl` or Helm",
	"helm":          "use Helm with the kubeconfig of mote: KUBECONFIG=/etc/mote/kubeconfig.yaml helm",
	"helm3":         "use Helm with the kubeconfig of mote: KUBECONFIG=/etc/mote/kubeconfig.yaml helm",
	"images":        "use `mote image`",
	"nerdctl":       "use `mote image`, `mote ctr` or `mote crictl`",
	"docker":        "use `mote image`, `mote ctr` or `mote crictl`",
	"logs":          "mote writes its log to standard error: `journalctl -u mote` has it of the service",
}

// Command answers an unknown command.
func Command(name string) string { return commands[name] }
