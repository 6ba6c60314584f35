package cmd

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

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
	values := map[string]string{
		"server": "https://192.0.2.2:6443", "data-dir": "/srv/mote", "node-name": "other", "node-ip": "192.0.2.7",
		"node-external-ip": "198.51.100.7",
		"token":            "abcdef.fedcba9876543210", "token-file": tokenFile, "disable": "dns", "node-label": "a=b",
		"node-taint":      "a=b:NoExecute",
		"registries-file": "/tmp/r", "kubelet-arg": "max-pods=7", "kube-proxy-arg": "proxy-mode=iptables",
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

func TestAgentConfig_Refused(t *testing.T) {
	for _, row := range []struct {
		name, setting, value string
		want                 string
	}{
		{"no server", "server", "", "server is missing"},
		{"no token", "token", "", "--token-file"},
		{"server without TLS", "server", "http://192.0.2.1:6443", "https://HOST:6443"},
		{"server with a path", "server", "https://192.0.2.1:6443/api", "https://HOST:6443"},
		{"token cut in half", "token", "M10" + strings.Repeat("ab", 20), "cut short"},
		{"unknown service", "disable", "dnss", "discovery, dns, network-policy"},
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
