package cmd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/nodename"
)

// agentSettings are the flags of `mote agent`, the MOTE_* variables, and keys of the configuration
// file. Those a server has too are the same ones.
func agentSettings() []settings.Setting {
	all := []settings.Setting{
		{Name: "server", Kind: settings.List,
			Usage: "`URL` of a server to join, https://HOST:6443 or HOST; several are tried in turn"},
		{Name: "node-external-ip", Kind: settings.List,
			Usage: "address at which other nodes reach this machine when it is behind a NAT"},
	}
	for _, s := range serverSettings() {
		switch s.Name {
		case "token":
			s.Usage = "token the server printed; needed for the first start only"
		case "disable":
			s.Usage = "in-process services not to run on this node: " + strings.Join(agent.Disableable(), ", ")
		case "data-dir", "node-name", "node-ip", "token-file", "node-label", "node-taint", "registries-file",
			"resolv-conf", "kubelet-arg", "kube-proxy-arg", formatSetting.Name, debugSetting.Name:
		default:
			continue
		}
		all = append(all, s)
	}
	return all
}

// agentConfig makes the configuration of a node without a server in its process, and checks it. A
// node that was not told where to join is refused, unless it has joined before.
func agentConfig(v settings.Values, log *zap.Logger) (agent.Config, error) {
	a, err := agentSettingsConfig(v, log)
	if err != nil {
		return a, err
	}
	return a, a.MayStart()
}

// agentSettingsConfig makes the configuration of the settings, and returns every fault of theirs.
func agentSettingsConfig(v settings.Values, log *zap.Logger) (agent.Config, error) {
	var p parser
	text, err := token(v)
	p.add(err)
	name, err := agentName(v)
	p.add(err)
	a := agent.Config{
		DataDir:        v.String("data-dir"),
		NodeName:       name,
		NodeIPs:        p.ips(v, "node-ip", v.List("node-ip")),
		ExternalIPs:    p.ips(v, "node-external-ip", v.List("node-external-ip")),
		Servers:        p.servers(v),
		Token:          text,
		KubeletArgs:    p.kubeletArgs(v),
		ProxyArgs:      v.List("kube-proxy-arg"),
		NodeLabels:     v.List("node-label"),
		NodeTaints:     v.List("node-taint"),
		Disable:        v.List("disable"),
		RegistriesFile: v.String("registries-file"),
		ResolvConf:     v.String("resolv-conf"),
		Debug:          v.Bool("debug"),
		Logger:         log,
	}
	if a.Logger == nil {
		a.Logger = zap.NewNop()
	}
	p.disable(a.Disable, agent.Disableable())
	p.add(a.Validate())
	p.check(a.Check)
	tellName(a.Logger, v, a.NodeName)
	return a, errors.Join(p.errs...)
}

// servers reads the addresses of servers, each as https://HOST:PORT and once.
func (p *parser) servers(v settings.Values) []string {
	var out []string
	for _, text := range v.List("server") {
		server, err := joinapi.ParseServer(text)
		switch url := "https://" + server; {
		case err != nil:
			p.add(fmt.Errorf("server %q%s is %w", text, v.From("server"), err))
		case !slices.Contains(out, url):
			out = append(out, url)
		}
	}
	return out
}

// agentName is the node's name: the one asked for, else the one it has joined under before the
// machine was renamed, else the machine's.
func agentName(v settings.Values) (string, error) {
	if name := v.String("node-name"); name != "" {
		return name, nil
	}
	name, err := join.Name(datadir.At(v.String("data-dir")).Agent().Identity())
	if err != nil || name != "" {
		return name, err
	}
	if name, err = os.Hostname(); err != nil {
		return "", fmt.Errorf("read host name: %w", err)
	}
	return nodename.OfHost(name), nil
}

// tellName says when the node is not called what the machine calls itself.
func tellName(log *zap.Logger, v settings.Values, name string) {
	host, err := os.Hostname()
	if err == nil && v.String("node-name") == "" && host != name && nodename.OfHost(host) == name {
		log.Info("the node's name is the host's name as DNS writes it", zap.String("node", name),
			zap.String("host", host))
	}
}
