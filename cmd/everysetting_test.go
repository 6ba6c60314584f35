package cmd

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/cmd/settings"
)

// settingRow is what a setting must do: a good value reaches a configuration from every source, a
// bad one is refused by its name. A setting without a row fails the test below.
type settingRow struct {
	good string
	// bad is refused with a message that has the setting's name.
	bad string
	// says stands for the setting's name in the message; empty means the name itself.
	says string
	// any says why no value is bad.
	any string
	// with is what the setting needs beside it.
	with map[string]string
}

func settingRows(t *testing.T) map[string]settingRow {
	t.Helper()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	token := "abcdef.0123456789abcdef"
	etcd := map[string]string{"datastore-endpoint": "https://127.0.0.1:2379", "token": token}
	pair := maps.Clone(etcd)
	cert, key := certificate(t)
	pair["datastore-certfile"], pair["datastore-keyfile"] = cert, key
	// The same pair under other names.
	for _, path := range []string{cert, key} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, path+".other", string(data))
	}
	kubelet := file("kubelet.yaml",
		"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 7\n")
	scheduler := file("scheduler.yaml",
		"apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n")
	return map[string]settingRow{
		"data-dir":  {good: "/srv/mote", bad: "relative"},
		"node-name": {good: "007", bad: "Bad_Name"},
		"node-ip":   {good: "192.0.2.7", bad: "here"},
		"node-external-ip": {
			good: "198.51.100.7",
			bad:  "127.0.0.1",
		},
		"bind-address":      {good: "192.0.2.8", bad: "eth0"},
		"https-listen-port": {good: "7443", bad: "06443"},
		"tls-san":           {good: "mote.example.com", bad: "a b"},
		"cluster-cidr":      {good: "10.50.0.0/16", bad: "10.50.0.0"},
		"service-cidr":      {good: "10.51.0.0/16", bad: "10.51.0.0/40"},
		"cluster-dns":       {good: "10.43.0.53", bad: "10.99.0.10"},
		"cluster-domain":    {good: "example.org", bad: "cluster_local"},
		"network-backend":   {good: "host-gw", bad: "flannel"},
		"token":             {good: "0123456789", bad: "K10" + strings.Repeat("ab", 32) + "::server:secret"},
		"token-file":        {good: file("token", token+"\n"), bad: dir + "/nowhere"},
		"disable":           {good: "dns", bad: "traefik"},
		"disable-agent":     {good: "true", bad: "perhaps"},
		"kubeconfig-output": {good: "/tmp/k", bad: "k.yaml"},
		"kubeconfig-mode":   {good: "0640", bad: "rw"},
		"kubeconfig-group":  {good: "1", bad: "no-such-group-here"},
		"node-label":        {good: "a=b", bad: "node-role.kubernetes.io/worker=true"},
		"node-taint":        {good: "a=b:NoExecute", bad: "a=b:Never"},
		"registries-file": {
			good: file("registries.yaml", "mirrors: {}\n"),
			bad:  dir + "/nowhere",
			says: "registries file",
		},
		"resolv-conf": {good: file("resolv.conf", "nameserver 192.0.2.53\n"), bad: "relative"},
		"kubelet-arg": {
			good: "config=" + kubelet,
			bad:  "config=" + dir + "/nowhere",
		},
		"kube-proxy-arg":              {good: "proxy-mode=iptables", bad: "config=" + scheduler},
		"kube-apiserver-arg":          {good: "event-ttl=2h", bad: "no-such-flag=1"},
		"kube-controller-manager-arg": {good: "concurrent-gc-syncs=3", bad: "leader-elect=true"},
		"kube-scheduler-arg":          {good: "config=" + scheduler, bad: "config=" + dir + "/nowhere"},
		"datastore-endpoint": {
			good: "http://127.0.0.1:2379",
			bad:  "db:2379",
			with: map[string]string{"token": token},
		},
		"datastore-cafile": {
			good: cert,
			bad:  dir + "/nowhere",
			with: etcd,
		},
		"datastore-certfile": {
			good: cert + ".other",
			bad:  dir + "/nowhere",
			with: pair,
		},
		"datastore-keyfile": {
			good: key + ".other",
			bad:  dir + "/nowhere",
			with: pair,
		},
		"datastore-durability": {good: "relaxed", bad: "some"},
		"server":               {good: "https://192.0.2.2:6443", bad: "http://192.0.2.2"},
		"log-format":           {good: "json", bad: "xml"},
		"debug":                {good: "yes", bad: "perhaps"},
	}
}

// No setting of a role is accepted and then ignored, from whichever source it comes.
func TestEverySetting_HasAnEffectOrIsRefused(t *testing.T) {
	rows := settingRows(t)
	for name, role := range map[string]struct {
		settings []settings.Setting
		base     map[string]string
		config   func(settings.Values) (string, error)
	}{
		"server": {serverSettings(), nil, func(v settings.Values) (string, error) {
			s, a, err := configs(v, zap.NewNop())
			s.Logger = nil
			text := fmt.Sprintf("%+v", s)
			if a != nil {
				a.Logger = nil
				text += fmt.Sprintf("%+v", *a)
			}
			return text, err
		}},
		"agent": {agentSettings(),
			map[string]string{"server": "https://192.0.2.1:6443", "token": "abcdef.0123456789abcdef"},
			func(v settings.Values) (string, error) {
				a, err := agentConfig(v, zap.NewNop())
				a.Logger = nil
				return fmt.Sprintf("%+v", a), err
			}},
	} {
		for _, s := range role.settings {
			row, known := rows[s.Name]
			if !known {
				t.Errorf("%s: setting %s has no row in this test: say what it does", name, s.Name)
				continue
			}
			t.Run(name+" "+s.Name, func(t *testing.T) {
				base := map[string]string{"node-name": "n1", "data-dir": filepath.Join(shortDir(t), "d")}
				maps.Copy(base, role.base)
				maps.Copy(base, row.with)
				if s.Name == "token-file" {
					delete(base, "token")
				}
				before, err := role.config(fromSource(t, role.settings, base, "", "", "flag"))
				if err != nil && s.Name != "token-file" {
					t.Fatalf("without the setting: %v", err)
				}
				var from []string
				for _, source := range []string{"flag", "variable", "file"} {
					after, err := role.config(fromSource(t, role.settings, base, s.Name, row.good, source))
					if err != nil {
						t.Errorf("%s from a %s: %v", row.good, source, err)
					}
					if after == before && s.Name != formatSetting.Name {
						t.Errorf("%s from a %s changes nothing", row.good, source)
					}
					from = append(from, after)
				}
				if !reflect.DeepEqual(from, []string{from[0], from[0], from[0]}) {
					t.Errorf("the sources differ:\n%s", strings.Join(from, "\n"))
				}
				if row.bad == "" {
					if row.any == "" {
						t.Error("no bad value, and no reason why")
					}
					return
				}
				args := []string{name}
				base[s.Name] = row.bad
				for key, value := range base {
					args = append(args, "--"+key+"="+value)
				}
				c := run(t, nil, args...)
				if c.code != 1 || !strings.Contains(c.stderr, cmp.Or(row.says, s.Name)) {
					t.Errorf("%s: code %d, %q; want it refused by its name", row.bad, c.code, c.stderr)
				}
				if dir := base["data-dir"]; filepath.IsAbs(dir) {
					if _, err := os.Stat(dir); !os.IsNotExist(err) {
						t.Errorf("the data folder was made: %v", err)
					}
				}
			})
		}
	}
}

// fromSource resolves base from flags, and one more setting from a source.
func fromSource(t *testing.T, all []settings.Setting, base map[string]string, name, value,
	source string) settings.Values {
	t.Helper()
	flags, env := map[string][]string{}, map[string]string{}
	for key, v := range base {
		if key != name {
			flags[key] = []string{v}
		}
	}
	var files settings.File
	switch {
	case name == "":
	case source == "flag":
		flags[name] = []string{value}
	case source == "variable":
		env[settings.Setting{Name: name}.Env()] = value
	default:
		path := filepath.Join(t.TempDir(), "config.yaml")
		// Without quotes, as people write it.
		writeFile(t, path, name+": "+value+"\n")
		var err error
		if files, err = settings.ReadFiles(path, true, fileKeys()); err != nil {
			t.Fatal(err)
		}
	}
	v, err := settings.Resolve(all, settings.Sources{Flags: flags, Files: files,
		LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
