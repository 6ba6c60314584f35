package cmd

import (
	"path/filepath"
	"strings"
	"testing"
)

// Whatever a part would refuse once it runs is refused by the preflight: in both roles, in the same
// words by `mote check`, and before the data folder is looked at.
func TestPreflight_RefusesWhatPartsWouldRefuse(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	type row struct {
		name       string
		args, want []string
	}
	// Both a server and a node alone have these.
	ofNodes := []row{
		{"kubelet flag that is none", []string{"--kubelet-arg", "max-podz=50"},
			[]string{`kubelet-arg "max-podz=50"`}},
		{"kubelet flag with dashes", []string{"--kubelet-arg", "--max-podz=50"},
			[]string{`kubelet-arg "--max-podz=50"`}},
		{"kubelet flag's value", []string{"--kubelet-arg", "max-pods=many"},
			[]string{`kubelet-arg "max-pods=many"`}},
		{"kubelet flag out of range", []string{"--kubelet-arg", "max-pods=-1"},
			[]string{"kubelet-arg", "maxPods"}},
		{"kubelet threshold", []string{"--kubelet-arg", "image-gc-high-threshold=101"},
			[]string{"kubelet-arg", "--image-gc-high-threshold"}},
		{"kubelet eviction", []string{"--kubelet-arg", "eviction-hard=memory.available<much"},
			[]string{"kubelet-arg eviction-hard"}},
		{"kubelet eviction signal", []string{"--kubelet-arg", "eviction-hard=memory.avail<5%"},
			[]string{"kubelet-arg eviction-hard"}},
		{"kubelet reserve", []string{"--kubelet-arg", "kube-reserved=cpu=lots"},
			[]string{"kubelet-arg kube-reserved", `cpu="lots"`}},
		{"kubelet CPU policy", []string{"--kubelet-arg", "cpu-manager-policy=best"},
			[]string{"kubelet-arg cpu-manager-policy", `"best"`, "static"}},
		{"kubelet CPU policy without a reserve", []string{"--kubelet-arg", "cpu-manager-policy=static"},
			[]string{"cpu-manager-policy=static", "system-reserved=cpu=N"}},
		{"kubelet reserved CPUs", []string{"--kubelet-arg", "reserved-cpus=0-1"},
			[]string{"reserved-cpus is not supported"}},
		{"kubelet topology policy", []string{"--kubelet-arg", "topology-manager-policy=x"},
			[]string{"kubelet-arg", "--topology-manager-policy"}},
		{"kubelet cgroup driver", []string{"--kubelet-arg", "cgroup-driver=none"},
			[]string{"kubelet-arg cgroup-driver", "systemd"}},
		{"kubelet log size", []string{"--kubelet-arg", "container-log-max-size=big"},
			[]string{"kubelet-arg container-log-max-size"}},
		{"kubelet cipher", []string{"--kubelet-arg", "tls-cipher-suites=ROT13"},
			[]string{"kubelet-arg tls-cipher-suites", "ROT13"}},
		{"kubelet's file", []string{"--kubelet-arg", "image-credential-provider-config=/nowhere/c.yaml"},
			[]string{"kubelet-arg image-credential-provider-config", "/nowhere/c.yaml"}},
		{"kubelet node address", []string{"--kubelet-arg", "node-ip=here"},
			[]string{"kubelet-arg node-ip", "here"}},
		{"kubelet feature gate", []string{"--kubelet-arg", "feature-gates=NoSuch=true"},
			[]string{`kubelet-arg "feature-gates=NoSuch=true"`, "NoSuch"}},
		{"label of Kubernetes", []string{"--node-label", "node-role.kubernetes.io/worker=true"},
			[]string{`node-label "node-role.kubernetes.io/worker=true"`, "kubectl label node"}},
		{"label of Kubernetes in k8s.io", []string{"--node-label", "x.k8s.io/pool=a"},
			[]string{`node-label "x.k8s.io/pool=a"`}},
		{"label of Kubernetes through the kubelet",
			[]string{"--kubelet-arg", "node-labels=node-role.kubernetes.io/worker=true"},
			[]string{"kubelet-arg", "node-role.kubernetes.io/worker"}},
		{"node's name through the kubelet", []string{"--kubelet-arg", "hostname-override=other"},
			[]string{`kubelet-arg "hostname-override=other" has no effect`, "set --node-name"}},
		{"another container runtime",
			[]string{"--kubelet-arg", "container-runtime-endpoint=unix:///run/crio/crio.sock"},
			[]string{"has no effect", "the container runtime is in mote's process"}},
		{"taint twice", []string{"--node-taint", "a=b:NoSchedule,a=c:NoSchedule"},
			[]string{`node-taint "a=c:NoSchedule"`, "leave one out"}},
		{"node address twice", []string{"--node-ip", "192.0.2.1,192.0.2.2"},
			[]string{"node-ip", "each address family"}},
		{"node address of none", []string{"--node-ip", "0.0.0.0"},
			[]string{"node-ip 0.0.0.0"}},
		{"registries file missing", []string{"--registries-file", "/nowhere/r.yaml"},
			[]string{"/nowhere/r.yaml"}},
		{"registries file no YAML", []string{"--registries-file", file("broken.yaml", "mirrors: [\n")},
			[]string{"broken.yaml"}},
		{"registries file with a word that is none",
			[]string{"--registries-file", file("word.yaml", "mirors:\n  docker.io: {}\n")},
			[]string{"word.yaml", "mirors"}},
		{"registries file is a folder", []string{"--registries-file", dir},
			[]string{dir}},
		{"node name of 71 characters", []string{"--node-name", strings.Repeat("a", 40) + "." + strings.Repeat("b", 30)},
			[]string{"node-name", "71 characters", "such as aaaa"}},
		{"node name with capitals", []string{"--node-name", "Pi4"},
			[]string{`node-name "Pi4"`, "such as pi4"}},
		{"node name with a dot at the end", []string{"--node-name", "pi4.lan."},
			[]string{`node-name "pi4.lan."`, "such as pi4.lan"}},
		{"node name with an underscore", []string{"--node-name", "pi_4"},
			[]string{`node-name "pi_4"`, "such as pi-4"}},
	}
	ofServers := []row{
		{"kubeconfig is a folder", []string{"--kubeconfig-output", dir},
			[]string{"kubeconfig-output", "is a folder"}},
		{"kubeconfig below a file", []string{"--kubeconfig-output", "/proc/version/k"},
			[]string{"kubeconfig-output /proc/version/k", "below a file"}},
		{"etcd's authority missing", []string{"--datastore-endpoint", "https://192.0.2.1:2379", "--token",
			"abcdef.0123456789abcdef", "--datastore-cafile", "/nowhere/ca"},
			[]string{"datastore-cafile", "/nowhere/ca"}},
		{"API server's port", []string{"--kube-apiserver-arg", "secure-port=7000"},
			[]string{`kube-apiserver-arg "secure-port=7000"`, "--https-listen-port"}},
		{"API server's etcd", []string{"--kube-apiserver-arg", "etcd-servers=http://192.0.2.1:2379"},
			[]string{`kube-apiserver-arg "etcd-servers=`, "--datastore-endpoint"}},
		{"API server flag", []string{"--kube-apiserver-arg", "max-request=5"},
			[]string{`kube-apiserver-arg "max-request=5"`}},
		{"API server flag's value", []string{"--kube-apiserver-arg", "event-ttl=long"},
			[]string{`kube-apiserver-arg "event-ttl=long"`}},
		{"API server limit", []string{"--kube-apiserver-arg", "max-requests-inflight=-1"},
			[]string{"kube-apiserver-arg", "--max-requests-inflight"}},
		{"API server feature gate", []string{"--kube-apiserver-arg", "feature-gates=NoSuch=true"},
			[]string{`kube-apiserver-arg "feature-gates=NoSuch=true"`}},
		{"API server emulates too old a version",
			[]string{"--kube-apiserver-arg", "emulated-version=1.20"}, []string{"kube-apiserver-arg", "1.20"}},
		{"API server emulates no version",
			[]string{"--kube-apiserver-arg", "emulated-version=old"}, []string{"kube-apiserver-arg", "old"}},
		{"API server admission plugin", []string{"--kube-apiserver-arg", "enable-admission-plugins=NoSuch"},
			[]string{"kube-apiserver-arg", "NoSuch"}},
		{"API server runtime config", []string{"--kube-apiserver-arg", "runtime-config=no.such/v1=true"},
			[]string{"kube-apiserver-arg", "no.such"}},
		// Upstream reads these late, when it applies its options.
		{"API server tokens missing", []string{"--kube-apiserver-arg", "token-auth-file=/nowhere/tokens"},
			[]string{`kube-apiserver-arg "token-auth-file=/nowhere/tokens": `}},
		{"API server authority is no certificate",
			[]string{"--kube-apiserver-arg", "client-ca-file=" + file("client-ca", "no certificate\n")},
			[]string{`kube-apiserver-arg "client-ca-file=`, "client-ca"}},
		{"API server proxies' authority is a folder",
			[]string{"--kube-apiserver-arg", "requestheader-client-ca-file=" + dir},
			[]string{`kube-apiserver-arg "requestheader-client-ca-file=` + dir, "is a directory"}},
		{"API server key missing", []string{"--kube-apiserver-arg", "service-account-key-file=/nowhere/sa.pub"},
			[]string{`kube-apiserver-arg "service-account-key-file=/nowhere/sa.pub"`}},
		{"API server certificate missing", []string{"--kube-apiserver-arg", "tls-cert-file=/nowhere/tls.crt",
			"--kube-apiserver-arg", "tls-private-key-file=/nowhere/tls.key"},
			[]string{`kube-apiserver-arg "tls-cert-file=/nowhere/tls.crt"`}},
		{"API server audit webhook is a folder", []string{"--kube-apiserver-arg", "audit-webhook-config-file=" + dir},
			[]string{`kube-apiserver-arg "audit-webhook-config-file=` + dir, "is a directory"}},
		{"controllers' authority missing", []string{"--kube-controller-manager-arg", "root-ca-file=/nowhere/ca"},
			[]string{`kube-controller-manager-arg "root-ca-file=/nowhere/ca": `}},
		{"controllers' signing certificate missing", []string{
			"--kube-controller-manager-arg", "cluster-signing-cert-file=/nowhere/ca",
			"--kube-controller-manager-arg", "cluster-signing-key-file=/nowhere/key"},
			[]string{`kube-controller-manager-arg "cluster-signing-cert-file=/nowhere/ca": `}},
		{"controllers' key missing",
			[]string{"--kube-controller-manager-arg", "service-account-private-key-file=/nowhere/key"},
			[]string{`kube-controller-manager-arg "service-account-private-key-file=/nowhere/key": `}},
		{"API server authentication file missing", []string{"--kube-apiserver-arg",
			"authentication-config=/nowhere/authn.yaml"},
			[]string{`kube-apiserver-arg "authentication-config=/nowhere/authn.yaml": `}},
		{"API server authentication file of another kind",
			[]string{"--kube-apiserver-arg", "authentication-config=" + file("authn.yaml", "kind: Pod\n")},
			[]string{`kube-apiserver-arg "authentication-config=`}},
		{"API server audit policy missing", []string{"--kube-apiserver-arg", "audit-policy-file=/nowhere/p.yaml"},
			[]string{`kube-apiserver-arg "audit-policy-file=/nowhere/p.yaml"`}},
		{"API server audit policy",
			[]string{"--kube-apiserver-arg", "audit-policy-file=" + file("audit.yaml", "kind: Pod\n")},
			[]string{"kube-apiserver-arg", "audit.yaml"}},
		{"API server encryption",
			[]string{"--kube-apiserver-arg", "encryption-provider-config=" + file("enc.yaml", "kind: Pod\n")},
			[]string{"kube-apiserver-arg", "enc.yaml"}},
		{"API server admission file",
			[]string{"--kube-apiserver-arg", "admission-control-config-file=" + file("adm.yaml", "kind: Pod\n")},
			[]string{"kube-apiserver-arg", "adm.yaml"}},
		{"API server authorization mode", []string{"--kube-apiserver-arg", "authorization-mode=Trust"},
			[]string{"kube-apiserver-arg", "Trust"}},
		{"API server OIDC", []string{"--kube-apiserver-arg", "oidc-issuer-url=http://x"},
			[]string{"kube-apiserver-arg", "oidc"}},
		{"API server watch caches", []string{"--kube-apiserver-arg", "watch-cache-sizes=pods"},
			[]string{"kube-apiserver-arg", "watch-cache-sizes"}},

		{"controller flag", []string{"--kube-controller-manager-arg", "node-grace=5s"},
			[]string{`kube-controller-manager-arg "node-grace=5s"`}},
		{"controller that is none", []string{"--kube-controller-manager-arg", "controllers=no-such"},
			[]string{"kube-controller-manager-arg", "no-such"}},
		{"controller feature gate", []string{"--kube-controller-manager-arg", "feature-gates=NoSuch=true"},
			[]string{`kube-controller-manager-arg "feature-gates=NoSuch=true"`}},
		{"controllers' allocator", []string{"--kube-controller-manager-arg", "cidr-allocator-type=CloudAllocator"},
			[]string{"kube-controller-manager-arg", "CloudAllocator"}},
		{"controllers' mask", []string{"--kube-controller-manager-arg", "node-cidr-mask-size=24"},
			[]string{"kube-controller-manager-arg node-cidr-mask-size", "node-cidr-mask-size-ipv4"}},
		{"controllers' mask wider than the range",
			[]string{"--kube-controller-manager-arg", "node-cidr-mask-size-ipv4=12"},
			[]string{"10.42.0.0/16"}},
		{"controllers' version", []string{"--kube-controller-manager-arg", "emulated-version=1.36"},
			[]string{`kube-controller-manager-arg "emulated-version=1.36"`, "kube-apiserver-arg"}},

		{"scheduler flag", []string{"--kube-scheduler-arg", "bind=5"},
			[]string{`kube-scheduler-arg "bind=5"`}},
		{"scheduler feature gate", []string{"--kube-scheduler-arg", "feature-gates=NoSuch=true"},
			[]string{`kube-scheduler-arg "feature-gates=NoSuch=true"`}},
		{"scheduler file missing", []string{"--kube-scheduler-arg", "config=/nowhere/s.yaml"},
			[]string{"kube-scheduler-arg config", "/nowhere/s.yaml"}},
		{"scheduler file", []string{"--kube-scheduler-arg", "config=" + file("sched.yaml", "kind: Pod\n")},
			[]string{"kube-scheduler-arg", "sched.yaml"}},
		{"scheduler plugin", []string{"--kube-scheduler-arg", "config=" + file("plugin.yaml", `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
  plugins: {score: {enabled: [{name: NoSuch}]}}
`)}, []string{"kube-scheduler-arg", `"NoSuch"`}},
	}
	for i, test := range append(ofNodes, ofServers...) {
		t.Run(test.name, func(t *testing.T) {
			commands := [][]string{{"server"}, {"check"}}
			if i < len(ofNodes) {
				commands = append(commands, []string{"agent", "--server", "https://192.0.2.1:6443", "--token",
					"abcdef.0123456789abcdef"}, []string{"check", "--agent"})
			}
			var said []string
			for _, command := range commands {
				// Below a file, so that what is not refused here is refused by the host's checks.
				const data = "/proc/version/data"
				c := run(t, map[string]string{"MOTE_CONFIG": ""},
					append(append(command, "--data-dir", data, "--node-name", "n"), test.args...)...)
				refused(t, c, test.want...)
				said = append(said, lastLine(c.stderr))
			}
			for _, s := range said[1:] {
				if s != said[0] {
					t.Errorf("mote server says %q, another command %q", said[0], s)
				}
			}
		})
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// What is right is not refused: the checks know upstream's flags as they are.
func TestPreflight_AcceptsWhatUpstreamAccepts(t *testing.T) {
	dir := t.TempDir()
	registries := filepath.Join(dir, "r.yaml")
	writeFile(t, registries, "mirrors:\n  docker.io:\n    endpoint: [\"https://mirror.example.org\"]\n")
	scheduler := filepath.Join(dir, "s.yaml")
	writeFile(t, scheduler, "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"+
		"profiles:\n- schedulerName: own\n  plugins: {score: {disabled: [{name: \"*\"}]}}\n")
	for _, args := range [][]string{
		{"--kubelet-arg", "max-pods=50", "--kubelet-arg", "--eviction-hard=memory.available<1Gi"},
		{"--kubelet-arg", "cpu-manager-policy=static", "--kubelet-arg", "system-reserved=cpu=200m"},
		{"--kubelet-arg", "kube-reserved=cpu=100m,memory=200Mi", "--kubelet-arg", "cgroup-driver=systemd"},
		{"--node-label", "pool=a,node.kubernetes.io/pool=b", "--node-taint", "a=b:NoSchedule,a=b:NoExecute"},
		{"--registries-file", registries},
		{"--kube-apiserver-arg", "event-ttl=2h", "--kube-apiserver-arg", "runtime-config=api/all=true"},
		{"--kube-apiserver-arg", "enable-admission-plugins=AlwaysPullImages"},
		{"--kube-apiserver-arg", "runtime-config=v1=true"},
		{"--kube-apiserver-arg", "service-node-port-range=30000-31000"},
		{"--kube-controller-manager-arg", "node-monitor-grace-period=20s"},
		{"--kube-controller-manager-arg", "node-cidr-mask-size-ipv4=25"},
		{"--kube-controller-manager-arg", "controllers=*,-ttl-controller"},
		{"--kube-scheduler-arg", "config=" + scheduler},
		{"--cluster-cidr", "10.42.0.0/16,fd00:42::/48", "--service-cidr", "10.43.0.0/16,fd00:43::/112"},
		{"--cluster-cidr", "fd00:42::/48", "--service-cidr", "fd00:43::/112"},
		{"--node-name", strings.Repeat("a", 30) + "." + strings.Repeat("b", 32)},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			c := run(t, map[string]string{"MOTE_CONFIG": ""}, append([]string{"check", "--node-name", "n", "--data-dir",
				filepath.Join(shortDir(t), "data")}, args...)...)
			if strings.Contains(c.stderr, "mote: ") || !strings.Contains(c.stdout, "data") {
				t.Errorf("mote check refuses it: %s%s", c.stderr, c.stdout)
			}
		})
	}
}
