package cmd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/server"
)

func resolve(t *testing.T, flags map[string][]string) settings.Values {
	t.Helper()
	v, err := settings.Resolve(serverSettings(), settings.Sources{Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConfigs_Defaults(t *testing.T) {
	s, a, err := configs(resolve(t, map[string][]string{"node-name": {"n1"}}), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(s.DataDir, s.NodeName, s.NodeIPs, s.BindAddress, s.HTTPSListenPort, s.Cluster.ClusterCIDRs,
		s.Cluster.ServiceCIDRs, s.Cluster.ClusterDNS, s.Cluster.ClusterDomain, s.Cluster.NetworkBackend,
		s.KubeconfigOutput, s.DatastoreDurability)
	want := "/var/lib/moten1[]<nil>6443[10.42.0.0/16][10.43.0.0/16][10.43.0.10]cluster.localvxlan/etc/mote/kubeconfig.yamlfull"
	if strings.ReplaceAll(got, " ", "") != want {
		t.Errorf("server is\n%s, want\n%s", got, want)
	}
	if a == nil || a.NodeName != "n1" || a.DataDir != s.DataDir || !reflect.DeepEqual(a.Cluster, s.Cluster) ||
		a.RegistriesFile != agent.DefaultRegistriesFile {
		t.Errorf("agent is %+v", a)
	}
}

// Every setting must end in one of the two configurations, or it does nothing.
func TestConfigs_EverySettingCounts(t *testing.T) {
	registries := filepath.Join(t.TempDir(), "registries.yaml")
	writeFile(t, registries, "mirrors: {}\n")
	scheduler := filepath.Join(t.TempDir(), "scheduler.yaml")
	writeFile(t, scheduler, "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n")
	tokenFile := filepath.Join(t.TempDir(), "token")
	writeFile(t, tokenFile, "abcdef.0123456789abcdef\n")
	cert, key := certificate(t)
	otherCert, otherKey := cert+".other", key+".other"
	for from, to := range map[string]string{cert: otherCert, key: otherKey} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, to, string(data))
	}
	values := map[string]string{
		"data-dir": "/srv/mote", "node-name": "other", "node-ip": "192.0.2.7", "bind-address": "192.0.2.8",
		"https-listen-port": "7443",
		"tls-san":           "mote.example.com", "cluster-cidr": "10.50.0.0/16", "service-cidr": "10.51.0.0/16",
		"cluster-dns":    "10.43.0.53",
		"cluster-domain": "example.org", "network-backend": "host-gw", "token": "abcdef.0123456789abcdef",
		"token-file": tokenFile, "disable": "dns", "disable-agent": "true",
		"kubeconfig-output": "/tmp/k", "kubeconfig-mode": "0640", "kubeconfig-group": "1",
		"node-label": "a=b", "node-taint": "a=b:NoExecute", "registries-file": registries,
		"resolv-conf": "/tmp/resolv.conf",
		"kubelet-arg": "max-pods=7", "kube-proxy-arg": "proxy-mode=iptables",
		"kube-apiserver-arg": "event-ttl=2h", "kube-controller-manager-arg": "concurrent-gc-syncs=3",
		"kube-scheduler-arg": "config=" + scheduler,
		"datastore-endpoint": "http://127.0.0.1:2379",
		"datastore-cafile":   cert, "datastore-certfile": cert, "datastore-keyfile": key,
		"datastore-durability": server.DurabilityRelaxed, "debug": "true",
	}
	// Some are refused without others.
	etcd := map[string][]string{"datastore-endpoint": {"https://127.0.0.1:2379"}, "token": {"abcdef.0123456789abcdef"}}
	pair := map[string][]string{"datastore-endpoint": etcd["datastore-endpoint"], "token": etcd["token"],
		"datastore-certfile": {otherCert}, "datastore-keyfile": {otherKey}}
	beside := map[string]map[string][]string{
		"datastore-endpoint": {"token": etcd["token"]}, "datastore-cafile": etcd, "datastore-certfile": pair,
		"datastore-keyfile": pair,
	}
	for _, s := range serverSettings() {
		if s.Name == formatSetting.Name {
			continue // for the logger, not the roles
		}
		value, known := values[s.Name]
		if !known {
			t.Errorf("setting %s has no value in this test", s.Name)
			continue
		}
		flags := map[string][]string{"node-name": {"n1"}}
		maps.Copy(flags, beside[s.Name])
		s0, a0, err := configs(resolve(t, flags), nil)
		if err != nil {
			t.Fatal(err)
		}
		flags[s.Name] = []string{value}
		s1, a1, err := configs(resolve(t, flags), nil)
		if err != nil {
			t.Errorf("%s=%s: %v", s.Name, value, err)
			continue
		}
		s1.Logger, s0.Logger = nil, nil
		if reflect.DeepEqual(s1, s0) && reflect.DeepEqual(a1, a0) {
			t.Errorf("%s=%s changes nothing", s.Name, value)
		}
	}
}

func TestConfigs_TokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeFile(t, path, "abcdef.0123456789abcdef\n")
	s, _, err := configs(resolve(t, map[string][]string{"node-name": {"n1"}, "token-file": {path}}), nil)
	if err != nil || s.Token != "abcdef.0123456789abcdef" {
		t.Errorf("token is %q, %v", s.Token, err)
	}
	writeFile(t, path, "\n")
	if _, _, err := configs(resolve(t, map[string][]string{"token-file": {path}}), nil); err == nil ||
		!strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty file: %v", err)
	}
}

func TestConfigs_DualStack(t *testing.T) {
	s, _, err := configs(resolve(t, map[string][]string{
		"node-name": {"n1"}, "cluster-cidr": {"10.42.0.0/16,fd00:42::/56"},
		"service-cidr": {"10.43.0.0/16", "fd00:43::/112"},
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Cluster.ClusterDNS); got != "[10.43.0.10 fd00:43::a]" {
		t.Errorf("cluster DNS is %s", got)
	}
}

func TestConfigs_FaultsOfBothRolesOnce(t *testing.T) {
	_, _, err := configs(resolve(t,
		map[string][]string{"node-name": {"Bad_Name"}, "kubelet-arg": {"x"}, "cluster-domain": {"?"}}), nil)
	lines := errorLines(err)
	if len(lines) != 3 {
		t.Errorf("%d faults, want 3: %q", len(lines), lines)
	}
}

func TestHostOptions_Ports(t *testing.T) {
	s, a, err := configs(resolve(t, map[string][]string{"node-name": {"n1"}, "https-listen-port": {"7443"},
		"kubelet-arg": {"port=7250", "address=127.0.0.1"}}), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range hostOptions(s, a).Ports {
		got = append(got, p.Address)
	}
	if fmt.Sprint(got) != "[:7443 127.0.0.1:7250]" {
		t.Errorf("ports are %v", got)
	}
	if o := hostOptions(s, nil); len(o.Ports) != 1 || o.Node {
		t.Errorf("without a node: %+v", o)
	}
}

func TestMachineSetting_Sources(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, path, "data-dir: /from/file\n")
	empty := filepath.Join(t.TempDir(), "empty.yaml")
	writeFile(t, empty, "")
	for _, test := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"file", map[string]string{"MOTE_CONFIG": path}, "/from/file"},
		{"environment", map[string]string{"MOTE_CONFIG": path, "MOTE_DATA_DIR": "/from/env"}, "/from/env"},
		{"default", map[string]string{"MOTE_CONFIG": empty}, "/otherwise"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := program{lookupEnv: func(k string) (string, bool) { v, ok := test.env[k]; return v, ok }}
			if got, err := p.machineSetting("data-dir", "/otherwise"); err != nil || got != test.want {
				t.Errorf("data-dir is %q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func TestExecHelper_LinkNames(t *testing.T) {
	// The tools end this process if they run, so only the way there is tested: a helper that cannot
	// be unpacked is reported under both names.
	if _, err := os.Stat("../runtime/bundle/data/bundle.json"); err == nil {
		t.Skip("this build has the helper")
	}
	for _, name := range []string{"kubectl", "ctr"} {
		var p program
		p.lookupEnv = func(string) (string, bool) { return "", false }
		var errOut strings.Builder
		p.stderr, p.stdout = &errOut, &errOut
		if code := p.run(t.Context(), []string{"/usr/local/bin/" + name, "--help"}); code != 1 ||
			!strings.Contains(errOut.String(), "bundle") {
			t.Errorf("%s: code %d, %q", name, code, errOut.String())
		}
	}
}

// certificate makes a certificate that signed itself, and returns its files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return cert, key
}
