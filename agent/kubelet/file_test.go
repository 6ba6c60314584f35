package kubelet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

const header = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func serverOf(t *testing.T, args ...string) (*options.KubeletServer, error) {
	t.Helper()
	dir := t.TempDir()
	return Config{
		RootDir:       dir,
		StaticPodsDir: filepath.Join(dir, "pods"),
		PodLogsDir:    filepath.Join(dir, "logs"),
		NodeName:      "n1",
		RuntimeSocket: "/run/containerd.sock",
		ClusterDomain: "example.org",
		CgroupRoot:    "/kubepods",
		ExtraArgs:     args,
	}.server()
}

// Files are merged as upstream's command does: mote's own settings, then config, then the files of
// config-dir in their order, then flags.
func TestConfig_Server_ConfigFiles(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "kubelet.yaml"), header+`maxPods: 7
serializeImagePulls: true
evictionHard: {memory.available: 100Mi}
registryPullQPS: 3
resolvConf: resolv.conf
authentication: {webhook: {cacheTTL: 5s}}
`)
	drop := filepath.Join(dir, "kubelet.d")
	write(t, filepath.Join(drop, "10-a.conf"), header+"maxPods: 8\nevictionHard: {nodefs.available: 2%}\n")
	write(t, filepath.Join(drop, "20", "b.conf"), header+"registryPullQPS: 4\nserializeImagePulls: null\n")
	write(t, filepath.Join(drop, "README"), "not read\n")

	s, err := serverOf(t, "config="+file)
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 7 || !s.SerializeImagePulls || s.RegistryPullQPS != 3 || s.ResolverConfig != dir+"/resolv.conf" ||
		s.Authentication.Webhook.CacheTTL.Seconds() != 5 {
		t.Errorf("a file: %d pods, serial %v, %d pulls, %s", s.MaxPods, s.SerializeImagePulls, s.RegistryPullQPS,
			s.ResolverConfig)
	}
	if len(s.EvictionHard) != 1 || s.EvictionHard["memory.available"] != "100Mi" {
		t.Errorf("a file's eviction-hard means all of it, it is %v", s.EvictionHard)
	}
	// What mote sets and a file does not stays.
	if s.FailSwapOn || s.HealthzPort != 0 || s.ClusterDomain != "example.org" || s.CgroupRoot != "/kubepods" ||
		!s.Authentication.Webhook.Enabled || s.Authentication.Anonymous.Enabled || s.MakeIPTablesUtilChains ||
		s.StaticPodPath == "" || s.ContainerRuntimeEndpoint != "unix:///run/containerd.sock" ||
		s.Authorization.Mode != "Webhook" || s.FailCgroupV1 {
		t.Errorf("mote's own settings are lost: %+v", s.KubeletConfiguration)
	}
	if err := options.ValidateKubeletServer(s); err != nil {
		t.Error(err)
	}

	if s, err = serverOf(t, "config-dir="+drop, "config="+file); err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 8 || s.RegistryPullQPS != 4 || s.SerializeImagePulls == false ||
		s.EvictionHard["memory.available"] != "100Mi" || s.EvictionHard["nodefs.available"] != "2%" {
		t.Errorf("a folder over a file: %d pods, %d pulls, serial %v, %v", s.MaxPods, s.RegistryPullQPS,
			s.SerializeImagePulls, s.EvictionHard)
	}
	if s, err = serverOf(t, "config-dir="+drop); err != nil || s.MaxPods != 8 {
		t.Errorf("a folder alone: %+v, %v", s, err)
	}
	if s, err = serverOf(t, "max-pods=9", "config="+file, "eviction-hard=nodefs.available<1%"); err != nil ||
		s.MaxPods != 9 || s.EvictionHard["nodefs.available"] != "1%" || len(s.EvictionHard) != 1 {
		t.Errorf("flags over a file: %v, %v", s, err)
	}
	json := write(t, filepath.Join(dir, "k.json"),
		`{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "maxPods": 5,
		"mergeDefaultEvictionSettings": true, "evictionHard": {"memory.available": "1Mi"}}`)
	if s, err = serverOf(t, "--config="+json); err != nil || s.MaxPods != 5 ||
		s.EvictionHard["memory.available"] != "1Mi" || len(s.EvictionHard) < 3 {
		t.Errorf("JSON, eviction merged: %v, %v", s, err)
	}
}

func TestConfig_Server_ConfigFilesRefused(t *testing.T) {
	dir := t.TempDir()
	for i, row := range []struct {
		name, content string
		want          []string
	}{
		{"unknown field", header + "maxPodz: 7\n", []string{`unknown field "maxPodz"`}},
		{"wrong type", header + "maxPods: many\n", []string{"maxPods"}},
		{"field twice", header + "maxPods: 7\nmaxPods: 8\n", []string{"maxPods"}},
		{"unknown gate", header + "featureGates: {NoSuchGate: true}\n", []string{"NoSuchGate"}},
		{"gate that is no boolean", header + "featureGates: {NodeSwap: 1}\n", []string{"NodeSwap"}},
		{"empty", "\n", []string{"is empty"}},
		{"no YAML", header + "maxPods: [\n", []string{"parse"}},
		{"no kind", "maxPods: 7\n", []string{"lacks kind or apiVersion: ",
			"KubeletConfiguration of kubelet.config.k8s.io/v1beta1"}},
		{"another component's", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n",
			[]string{"KubeProxyConfiguration", "a kubelet reads"}},
		{"a later version", strings.Replace(header, "v1beta1", "v2", 1), []string{"kubelet.config.k8s.io/v2"}},
		{"two documents", header + "---\n" + header, []string{"several documents"}},
		{"what mote relies on", header + `containerRuntimeEndpoint: unix:///run/other.sock
clusterDNS: [10.0.0.10]
authentication: {anonymous: {enabled: true}, x509: {clientCAFile: /ca}}
authorization: {mode: AlwaysAllow}
cgroupRoot: /elsewhere
`, []string{"containerRuntimeEndpoint", "clusterDNS", "set --cluster-dns", "authentication.anonymous.enabled",
			"authentication.x509.clientCAFile", "authorization.mode", "cgroupRoot", "--data-dir"}},
		{"what has no effect", header + "healthzPort: 10248\nkubeAPIQPS: 50\nlogging: {verbosity: 4}\n",
			[]string{"healthzPort", "kubeAPIQPS", "logging.verbosity"}},
		{"what belongs to mote's setting", header + "registerWithTaints: [{key: a, effect: NoSchedule}]\n",
			[]string{"registerWithTaints", "--node-taint"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := write(t, filepath.Join(dir, string(rune('a'+i)), "k.conf"), row.content)
			for _, arg := range []string{"config=" + file, "config-dir=" + filepath.Dir(file)} {
				_, err := serverOf(t, arg)
				if err == nil {
					t.Fatalf("%s is accepted", arg)
				}
				for _, want := range append(row.want, "kubelet-arg config", file) {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s: message %q lacks %q", arg, err, want)
					}
				}
				if _, err := ExpandArgs([]string{arg}); err == nil {
					t.Errorf("%s is expanded", arg)
				}
			}
		})
	}
	// What asks for nothing else than mote does is as good as not set.
	file := write(t, filepath.Join(dir, "same.yaml"), header+`containerRuntimeEndpoint: ""
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: ""}}
authorization: {mode: Webhook}
rotateCertificates: true
logging: {verbosity: 0, flushFrequency: 0}
`)
	if _, err := serverOf(t, "config="+file); err != nil {
		t.Error(err)
	}
	yml := write(t, filepath.Join(dir, "yml", "10.yaml"), header)
	for _, row := range []struct {
		arg, want string
	}{
		{"config=" + dir + "/nowhere", "nowhere: no such file"}, {"config=" + dir, "is a directory"},
		{"config-dir=" + dir + "/nowhere", "no such file"}, {"config-dir=" + file, "no folder"},
		{"config-dir=" + filepath.Dir(yml), "10.yaml would not be read"},
		{"kubeconfig=/k", "mote connects the kubelet"}, {"v=4", "--debug"},
		{"--healthz-port=10248", "/healthz"}, {"rotate-certificates=false", "renews"},
	} {
		if _, err := serverOf(t, row.arg); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.arg, err, row.want)
		}
	}
}

// Other parts of a node learn from the arguments what the kubelet learns from its file.
func TestExpandArgs_WhatOthersRead(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "k.yaml"), header+
		"port: 10333\naddress: 127.0.0.1\ncgroupDriver: systemd\nfeatureGates: {NodeSwap: true, ImageVolume: true}\nmaxPods: 7\n")
	got, err := ExpandArgs([]string{"config=" + file, "port=10444"})
	want := []string{"address=127.0.0.1", "port=10333", "cgroup-driver=systemd",
		"feature-gates=ImageVolume=true,NodeSwap=true", "config=" + file, "port=10444"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("args are %q, %v; want %q", got, err, want)
	}
	if a := Address(got); a != "127.0.0.1:10444" {
		t.Errorf("the kubelet is at %s", a)
	}
	plain := []string{"max-pods=7"}
	if got, err := ExpandArgs(plain); err != nil || !slices.Equal(got, plain) {
		t.Errorf("args are %q, %v; want them as they were", got, err)
	}
}
