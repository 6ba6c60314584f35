package cmd

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mote-dev/mote/cmd/habits"
)

// k3sFlags are those of k3s' documentation for servers and agents.
const k3sFlags = `advertise-address advertise-port agent-token agent-token-file airgap-extra-registry alsologtostderr
bind-address cluster-cidr cluster-dns cluster-domain cluster-init cluster-reset cluster-reset-restore-path
container-runtime-endpoint data-dir datastore-cafile datastore-certfile datastore-endpoint datastore-keyfile debug
default-local-storage-path default-runtime disable disable-agent disable-apiserver disable-apiserver-lb
disable-cloud-controller disable-controller-manager disable-default-registry-endpoint disable-etcd
disable-helm-controller disable-kube-proxy disable-network-policy disable-scheduler docker egress-selector-mode
embedded-registry enable-pprof etcd-arg etcd-disable-snapshots etcd-expose-metrics etcd-s3 etcd-s3-bucket
etcd-snapshot-compress etcd-snapshot-dir etcd-snapshot-name etcd-snapshot-retention etcd-snapshot-schedule-cron
flannel-backend flannel-cni-conf flannel-conf flannel-external-ip flannel-iface flannel-ipv6-masq helm-job-image
https-listen-port image-credential-provider-bin-dir image-credential-provider-config image-service-endpoint kine-tls
kube-apiserver-arg kube-cloud-controller-manager-arg kube-controller-manager-arg kube-proxy-arg kube-scheduler-arg
kubelet-arg lb-server-port log node-external-dns node-external-ip node-internal-dns node-ip node-label node-name
node-taint nonroot-devices pause-image prefer-bundled-bin private-registry protect-kernel-defaults resolv-conf rootless
secrets-encryption secrets-encryption-provider selinux server service-cidr service-node-port-range servicelb-namespace
snapshotter supervisor-metrics system-default-registry tls-min-version tls-san tls-san-security token token-file v
vmodule vpn-auth vpn-auth-file with-node-id write-kubeconfig write-kubeconfig-group write-kubeconfig-mode`

var (
	namedFlag = regexp.MustCompile(`--([a-z][a-z-]+)`)
	namedPage = regexp.MustCompile(`docs/[a-z0-9-]+\.md`)
)

// An answer names settings and pages that there are.
func checkAnswer(t *testing.T, word, answer string) {
	t.Helper()
	for _, m := range namedFlag.FindAllStringSubmatch(answer, -1) {
		ofCommands := []string{"yes", "pods"}
		if !slices.Contains(fileKeys().Known, m[1]) && !slices.Contains(ofCommands, m[1]) {
			t.Errorf("%s: there is no setting --%s: %s", word, m[1], answer)
		}
	}
	for _, page := range namedPage.FindAllString(answer, -1) {
		if _, err := os.Stat(filepath.Join("..", page)); err != nil {
			t.Errorf("%s: %v", word, err)
		}
	}
}

func TestHabits_EveryFlagOfK3sHasAnAnswer(t *testing.T) {
	for name := range strings.FieldsSeq(k3sFlags) {
		answer := habits.Setting(name)
		if known := slices.Contains(fileKeys().Known, name); known == (answer != "") {
			t.Errorf("%s: a setting of mote: %v, answer %q; want one of both", name, known, answer)
		}
		checkAnswer(t, name, answer)
	}
}

func TestHabits_EveryWordIsAnswered(t *testing.T) {
	for word := range strings.FieldsSeq(`etcd-snapshot secrets-encrypt check-config k3s-killall.sh killall k3s-uninstall.sh
		controller worker install sysinfo backup restore init join add-node leave enable disable inspect reset start`) {
		answer := habits.Command(word)
		refused(t, run(t, nil, word, "--all"), `unknown command "`+word+`": `+answer)
		checkAnswer(t, word, answer)
	}
	for word := range strings.FieldsSeq("traefik servicelb local-storage metrics-server coredns ccm helm-controller") {
		c := run(t, nil, "server", "--data-dir", filepath.Join(shortDir(t), "d"), "--node-name", "n", "--disable", word)
		refused(t, c, `no service "`+word+`": `+habits.Component(word), "discovery, dns, load-balancer, network-policy")
	}
}

// Everything that is unknown is reported at once, each with its answer.
func TestServer_HabitsOfOthers_AllAtOnce(t *testing.T) {
	dir := shortDir(t)
	data := filepath.Join(dir, "data")
	file := filepath.Join(dir, "config.yaml")
	writeFile(t, file, "write-kubeconfig-mode: \"0644\"\ncluster-init: true\nflannel-backend: none\nnode-nam: x\n"+
		"disable: [traefik]\n")
	for _, row := range []struct {
		name string
		env  map[string]string
		args []string
		want []string
	}{
		{"flags", nil, []string{"--cluster-init", "--flannel-backend", "host-gw", "--disable=traefik", "--docker",
			"-t", "secret", "--node-nam", "x", "--secrets-encryption", "--write-kubeconfig-mode=644",
			"--etcd-s3-bucket", "b"},
			[]string{"unknown flag --cluster-init: several servers share an etcd",
				"unknown flag --flannel-backend: use --network-backend",
				"unknown flag --docker: containerd is in mote", "unknown flag -t: use --token",
				`unknown flag --node-nam (did you mean "--node-name"?)`, "encryption-provider-config",
				"--write-kubeconfig-mode: ", "mote snapshot"}},
		{"file", nil, []string{"--config", file}, []string{`unknown key "write-kubeconfig-mode"`,
			`unknown key "cluster-init" in ` + file + ": several servers", `"flannel-backend"`, `"node-nam"`}},
		{"variables", map[string]string{"K3S_TOKEN": "a", "K3S_URL": "b", "K3S_NODE_NAME": "c", "K3S_SELINUX": "true",
			"K3S_ODD": "1", "MOTE_DATADIR": "/d", "MOTE_FLANNEL_BACKEND": "vxlan", "K3S_EMPTY": ""}, nil,
			[]string{"variable K3S_TOKEN is k3s': use MOTE_TOKEN", "K3S_URL is k3s': use MOTE_SERVER",
				"K3S_NODE_NAME is k3s': use MOTE_NODE_NAME", "K3S_SELINUX is k3s': there is no SELinux", "K3S_ODD",
				`unknown variable MOTE_DATADIR (did you mean "MOTE_DATA_DIR"?)`,
				"unknown variable MOTE_FLANNEL_BACKEND: use --network-backend"}},
		{"token of k3s", nil, []string{"--token", "K10" + strings.Repeat("ab", 32) + "::server:0123456789"},
			[]string{"token of k3s", "mote token create"}},
		{"token of k3s, cut", nil, []string{"--token", "K10" + strings.Repeat("ab", 30)}, []string{"token of k3s"}},
		{"token of k0s", nil, []string{"--token", "H4sIAAAAAAAC" + strings.Repeat("ab+/", 300) + "=="},
			[]string{"token of k3s or k0s"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := run(t, row.env, append([]string{"server", "--data-dir", data, "--node-name", "n"}, row.args...)...)
			if c.code != 1 {
				t.Errorf("exit code is %d, want 1", c.code)
			}
			for _, want := range row.want {
				if !strings.Contains(c.stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, c.stderr)
				}
			}
			for line := range strings.Lines(c.stderr) {
				if !strings.HasPrefix(line, "mote: ") {
					t.Errorf("line %q is no message", line)
				}
			}
			if _, err := os.Stat(data); !os.IsNotExist(err) {
				t.Errorf("the data folder was made: %v", err)
			}
		})
	}
}

// A kubelet puts variables for a Service into containers; one called mote is no reason to refuse.
// Commands that are no role do not mind k3s', but a mistyped MOTE_DATA_DIR counts for all.
func TestCheckVariables_OnlyWhatIsMeantForMote(t *testing.T) {
	service := map[string]string{}
	for _, name := range []string{"MOTE_SERVICE_HOST", "MOTE_SERVICE_PORT", "MOTE_SERVICE_PORT_HTTPS", "MOTE_PORT",
		"MOTE_PORT_6443_TCP", "MOTE_PORT_6443_TCP_PROTO", "MOTE_API_SERVICE_HOST", "MOTE_API_PORT_443_UDP_ADDR",
		"K3S_SERVICE_HOST"} {
		service[name] = "tcp://10.43.0.7:6443"
	}
	for _, row := range []struct {
		name string
		env  map[string]string
		args []string
		want string
	}{
		{"service variables", service, []string{"server", "--node-name", "Bad_", "--data-dir", "/d"}, "node-name"},
		{"k3s' beside a command", map[string]string{"K3S_TOKEN": "x"},
			[]string{"image", "list", "--data-dir", "/nowhere"}, "no mote runs"},
		{"a command", map[string]string{"MOTE_DATA_DRI": "/x"}, []string{"image", "list"},
			"unknown variable MOTE_DATA_DRI"},
		{"a command that removes", map[string]string{"MOTE_DATADIR": "/x"}, []string{"uninstall", "--yes"},
			"unknown variable MOTE_DATADIR"},
		{"a command with a kubeconfig", map[string]string{"MOTE_KUBECONFIG": "/x"}, []string{"token", "list"},
			"unknown variable MOTE_KUBECONFIG"},
		{"kubectl", map[string]string{"MOTE_KUBECONFIG": "/x"}, []string{"kubectl", "get", "nodes"},
			"unknown variable MOTE_KUBECONFIG"},
	} {
		t.Run(row.name, func(t *testing.T) { refused(t, run(t, row.env, row.args...), row.want) })
	}
}
