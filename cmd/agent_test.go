package cmd

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/settings"
)

func resolveAgent(t *testing.T, flags map[string][]string) settings.Values {
	t.Helper()
	v, err := settings.Resolve(agentSettings(), settings.Sources{Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func agentFlags(t *testing.T) map[string][]string {
	t.Helper()
	return map[string][]string{"node-name": {"n1"}, "server": {"https://192.0.2.1:6443"},
		"token": {"abcdef.0123456789abcdef"}, "data-dir": {filepath.Join(t.TempDir(), "d")}}
}

func TestAgentConfig_EverySettingCounts(t *testing.T) {
	tokenFile := filepath.Join(t.TempDir(), "token")
	writeFile(t, tokenFile, "abcdef.abcdefabcdefabcd\n")
	registries := filepath.Join(t.TempDir(), "registries.yaml")
	writeFile(t, registries, "mirrors: {}\n")
	values := map[string]string{
		"server": "https://192.0.2.2:6443", "data-dir": "/srv/mote", "node-name": "other", "node-ip": "192.0.2.7",
		"node-external-ip": "198.51.100.7",
		"token":            "abcdef.fedcba9876543210", "token-file": tokenFile, "disable": "dns", "node-label": "a=b",
		"node-taint":      "a=b:NoExecute",
		"resolv-conf":     "/tmp/resolv.conf",
		"registries-file": registries, "kubelet-arg": "max-pods=7", "kube-proxy-arg": "proxy-mode=iptables",
		"debug": "true",
	}
	base := agentFlags(t)
	before, err := agentConfig(resolveAgent(t, base), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range agentSettings() {
		if s.Name == formatSetting.Name {
			continue // for the logger
		}
		value, known := values[s.Name]
		if !known {
			t.Errorf("setting %s has no value in this test", s.Name)
			continue
		}
		flags := map[string][]string{}
		for k, v := range base {
			flags[k] = v
		}
		flags[s.Name] = []string{value}
		if s.Name == "token-file" {
			delete(flags, "token")
		}
		after, err := agentConfig(resolveAgent(t, flags), nil)
		if err != nil {
			t.Errorf("%s=%s: %v", s.Name, value, err)
			continue
		}
		before.Logger, after.Logger = nil, nil
		if reflect.DeepEqual(before, after) {
			t.Errorf("%s=%s changes nothing", s.Name, value)
		}
	}
}

// A server without a port is on 6443, wherever it is written and in each way of writing it.
func TestAgentConfig_ServerWithoutPort_Is6443(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, file, "server: [a.example, \"https://b.example\"]\n")
	files, err := settings.ReadFiles(file, true, fileKeys())
	if err != nil {
		t.Fatal(err)
	}
	env := func(value string) func(string) (string, bool) {
		return func(name string) (string, bool) { return value, name == "MOTE_SERVER" }
	}
	for _, row := range []struct {
		name string
		from settings.Sources
		want []string
	}{
		{"flag", settings.Sources{Flags: map[string][]string{"server": {"192.0.2.1"}}},
			[]string{"https://192.0.2.1:6443"}},
		{"several flags and commas", settings.Sources{Flags: map[string][]string{
			"server": {"https://192.0.2.1,fd00::1", "https://[fd00::2]/"}}},
			[]string{"https://192.0.2.1:6443", "https://[fd00::1]:6443", "https://[fd00::2]:6443"}},
		{"the same one twice", settings.Sources{Flags: map[string][]string{
			"server": {"a.example", "https://A.example:6443/"}}}, []string{"https://a.example:6443"}},
		{"another port", settings.Sources{Flags: map[string][]string{"server": {"a.example:443"}}},
			[]string{"https://a.example:443"}},
		{"variable", settings.Sources{LookupEnv: env("https://a.example")}, []string{"https://a.example:6443"}},
		{"file", settings.Sources{Files: files}, []string{"https://a.example:6443", "https://b.example:6443"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.from.Flags == nil {
				row.from.Flags = map[string][]string{}
			}
			for name, value := range map[string]string{"node-name": "n1", "token": "abcdef.0123456789abcdef",
				"data-dir": "/srv/none"} {
				row.from.Flags[name] = []string{value}
			}
			v, err := settings.Resolve(agentSettings(), row.from)
			if err != nil {
				t.Fatal(err)
			}
			a, err := agentConfig(v, nil)
			if err != nil || !slices.Equal(a.Servers, row.want) {
				t.Errorf("servers are %q, %v; want %q", a.Servers, err, row.want)
			}
		})
	}
	v, err := settings.Resolve(agentSettings(), settings.Sources{LookupEnv: env("http://192.0.2.1")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agentConfig(v, nil); err == nil || !strings.Contains(err.Error(), "(from MOTE_SERVER)") {
		t.Errorf("error is %v, want one that names the variable", err)
	}
}

func TestAgentConfig_Refused(t *testing.T) {
	for _, row := range []struct {
		name, setting, value string
		want                 string
	}{
		{"no server", "server", "", "server is missing"},
		{"no token", "token", "", "--token-file"},
		{"server without TLS", "server", "http://192.0.2.1:6443", "https://HOST:6443"},
		{"server with a path", "server", "https://192.0.2.1:6443/api", "https://HOST:6443"},
		{"server port 0", "server", "192.0.2.1:0", "no TCP port"},
		{"token cut in half", "token", "M10" + strings.Repeat("ab", 20), "cut short"},
		{"unknown service", "disable", "dnss",
			strings.Join(agent.Disableable(), ", ")},
	} {
		t.Run(row.name, func(t *testing.T) {
			flags := agentFlags(t)
			flags[row.setting] = []string{row.value}
			_, err := agentConfig(resolveAgent(t, flags), nil)
			lines := errorLines(err)
			if len(lines) != 1 || !strings.Contains(lines[0], row.want) {
				t.Errorf("lines are %q, want one with %q", lines, row.want)
			}
		})
	}
}
