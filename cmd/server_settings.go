package cmd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/agent"
	"github.com/mote-dev/mote/cmd/habits"
	"github.com/mote-dev/mote/cmd/settings"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/logging"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/server"
)

// Settings that several commands share.
var (
	configSetting = settings.Setting{Name: "config", Default: settings.DefaultFile,
		Usage: "configuration `FILE`; the files of FILE.d are read after it"}
	dataDirSetting = settings.Setting{Name: "data-dir", Default: server.DefaultDataDir,
		Usage: "folder for all of mote's data"}
	debugSetting  = settings.Setting{Name: "debug", Kind: settings.Bool, Usage: "log more"}
	formatSetting = settings.Setting{Name: "log-format", Default: logging.FormatText,
		Usage: "format of log lines: text or json"}
)

// serverSettings are the flags of `mote server`, the MOTE_* variables, and the keys of the
// configuration file.
func serverSettings() []settings.Setting {
	return []settings.Setting{
		dataDirSetting,
		{Name: "node-name", Usage: "name of this machine's node (default: the host name)"},
		{Name: "node-ip", Kind: settings.List,
			Usage: "address of this machine, one of each family (default: that of the default route)"},
		{Name: "bind-address", Usage: "address the HTTPS port listens on (default: all)"},
		{
			Name:    "https-listen-port",
			Kind:    settings.Int,
			Default: fmt.Sprint(server.DefaultHTTPSListenPort),
			Usage:   "port of the API server",
		},
		{Name: "tls-san", Kind: settings.List,
			Usage: "further host names and addresses in the API server's certificate"},
		{
			Name:    "cluster-cidr",
			Kind:    settings.List,
			Default: clusterconfig.DefaultClusterCIDR,
			Usage:   "addresses of pods, one range of each family",
		},
		{
			Name:    "service-cidr",
			Kind:    settings.List,
			Default: clusterconfig.DefaultServiceCIDR,
			Usage:   "addresses of services, one range of each family",
		},
		{Name: "cluster-dns", Kind: settings.List,
			Usage: "address of the cluster's DNS (default: the tenth of service-cidr)"},
		{Name: "cluster-domain", Default: clusterconfig.DefaultClusterDomain, Usage: "DNS domain of the cluster"},
		{Name: "network-backend", Default: string(clusterconfig.DefaultNetworkBackend),
			Usage: "how all nodes reach pods of other nodes: " + clusterconfig.Choices()},
		{Name: "token", Usage: "token or password agents join with (default: generated at first start)"},
		{Name: "token-file", Usage: "`FILE` that holds the token"},
		{Name: "disable", Kind: settings.List,
			Usage: "in-process services not to run: " + strings.Join(disableable(), ", ")},
		{Name: "disable-agent", Kind: settings.Bool, Usage: "run no node beside the server"},
		{Name: "kubeconfig-output", Default: server.DefaultKubeconfigOutput,
			Usage: "`FILE` for the administrator's kubeconfig"},
		{Name: "kubeconfig-mode",
			Usage: "permissions of that file, in octal (default: 0600, or 0640 with a kubeconfig-group)"},
		{Name: "kubeconfig-group",
			Usage: "`GROUP` of that file, whose members can then use mote kubectl; they administrate the cluster"},
		{Name: "node-label", Kind: settings.List, Usage: "label (key=value) the node registers with"},
		{Name: "node-taint", Kind: settings.List, Usage: "taint (key=value:Effect) the node registers with"},
		{Name: "registries-file", Default: agent.DefaultRegistriesFile,
			Usage: "`FILE` of image registry mirrors and credentials"},
		{Name: "resolv-conf", Usage: "`FILE` that names this machine's resolvers; pods get its search domains " +
			"(default: /etc/resolv.conf, without its search domains)"},
		{Name: "kubelet-arg", Kind: settings.Args, Usage: "flag=value for the kubelet"},
		{Name: "kube-proxy-arg", Kind: settings.Args,
			Usage: "flag=value for the service proxy: proxy-mode, nodeport-addresses, healthz-bind-address, " +
				"metrics-bind-address"},
		{Name: "kube-apiserver-arg", Kind: settings.Args, Usage: "flag=value for the API server"},
		{Name: "kube-controller-manager-arg", Kind: settings.Args, Usage: "flag=value for the controllers"},
		{Name: "kube-scheduler-arg", Kind: settings.Args, Usage: "flag=value for the scheduler"},
		{Name: "datastore-endpoint", Usage: "`URLS` of an etcd cluster to use instead of the built-in store"},
		{Name: "datastore-cafile",
			Usage: "`FILE` of the CA of that etcd's certificates (default: the machine's trusted CAs)"},
		{Name: "datastore-certfile", Usage: "`FILE` of the client certificate for that etcd"},
		{Name: "datastore-keyfile", Usage: "`FILE` of that certificate's key"},
		{Name: "datastore-durability", Default: server.DefaultDatastoreDurability,
			Usage: "full, or relaxed: writes less, but may lose the last seconds in a power cut"},
		formatSetting,
		debugSetting,
	}
}

// fileKeys are the keys a configuration file may have.
func fileKeys() settings.Keys {
	keys := settings.Keys{Answer: habits.Setting}
	for _, s := range append(serverSettings(), agentSettings()...) {
		if !slices.Contains(keys.Known, s.Name) {
			keys.Known = append(keys.Known, s.Name)
		}
	}
	return keys
}

// configs makes the two roles' configurations of the settings, and checks them. The agent's is nil
// when no node shall run. Every fault is returned.
func configs(v settings.Values, log *zap.Logger) (server.Config, *agent.Config, error) {
	var p parser
	token, err := token(v)
	p.add(err)
	s := server.Config{
		DataDir:         v.String("data-dir"),
		NodeName:        v.String("node-name"),
		NodeIPs:         p.ips(v, "node-ip", v.List("node-ip")),
		HTTPSListenPort: v.Int("https-listen-port"),
		TLSSANs:         v.List("tls-san"),
		Cluster: clusterconfig.Config{
			ClusterCIDRs:   p.nets(v, "cluster-cidr"),
			ServiceCIDRs:   p.nets(v, "service-cidr"),
			ClusterDNS:     p.addrs(v, "cluster-dns"),
			ClusterDomain:  v.String("cluster-domain"),
			NetworkBackend: clusterconfig.Backend(v.String("network-backend")),
			Disable:        v.List("disable"),
		},
		Token:                     token,
		KubeconfigOutput:          v.String("kubeconfig-output"),
		KubeconfigMode:            p.mode(v, "kubeconfig-mode"),
		KubeconfigGID:             p.group(v, "kubeconfig-group"),
		KubeAPIServerArgs:         v.List("kube-apiserver-arg"),
		KubeControllerManagerArgs: v.List("kube-controller-manager-arg"),
		KubeSchedulerArgs:         v.List("kube-scheduler-arg"),
		DatastoreEndpoint:         v.String("datastore-endpoint"),
		DatastoreCAFile:           v.String("datastore-cafile"),
		DatastoreCertFile:         v.String("datastore-certfile"),
		DatastoreKeyFile:          v.String("datastore-keyfile"),
		DatastoreDurability:       v.String("datastore-durability"),
		Version:                   Version,
		Debug:                     v.Bool("debug"),
		Logger:                    log,
	}
	if bind := v.String("bind-address"); bind != "" {
		if ips := p.ips(v, "bind-address", []string{bind}); len(ips) == 1 {
			s.BindAddress = ips[0]
		}
	}
	if s.HTTPSListenPort == 0 {
		// Zero means the default to the server; a person who wrote it meant something else.
		p.add(fmt.Errorf("https-listen-port 0%s is no TCP port: use 1 to 65535", v.From("https-listen-port")))
	}
	// Values that could not be read are missing in s, which Validate would report once more.
	if len(p.errs) > 0 {
		return s, nil, errors.Join(p.errs...)
	}
	s, err = s.WithDefaults()
	if err != nil {
		return s, nil, err
	}
	p.disable(s.Cluster.Disable, disableable())
	p.add(s.Validate())
	if v.Bool("disable-agent") {
		p.check(s.Check)
		return s, nil, errors.Join(p.errs...)
	}
	a := &agent.Config{
		DataDir:        s.DataDir,
		NodeName:       s.NodeName,
		NodeIPs:        s.NodeIPs,
		Cluster:        s.Cluster,
		KubeletArgs:    p.kubeletArgs(v),
		ProxyArgs:      v.List("kube-proxy-arg"),
		NodeLabels:     v.List("node-label"),
		NodeTaints:     v.List("node-taint"),
		RegistriesFile: v.String("registries-file"),
		ResolvConf:     v.String("resolv-conf"),
		Debug:          s.Debug,
		Logger:         log,
	}
	p.add(a.Validate())
	p.portOfNode(s.HTTPSListenPort, v, a)
	p.check(s.Check, a.Check)
	tellName(s.Logger, v, s.NodeName)
	return s, a, errors.Join(p.errs...)
}

// portOfNode refuses a port of the API server that its node opens, too. Both are free beforehand.
func (p *parser) portOfNode(port int, v settings.Values, a *agent.Config) {
	for _, other := range []struct{ address, purpose, setting string }{
		{":" + upstreamflag.Value(a.KubeletArgs, "port", kubeletPort), "the kubelet", "--kubelet-arg port=N"},
		{upstreamflag.Value(a.ProxyArgs, "healthz-bind-address", proxyHealthz), "the service proxy's health",
			"--kube-proxy-arg healthz-bind-address=IP:PORT"},
		{upstreamflag.Value(a.ProxyArgs, "metrics-bind-address", proxyMetrics), "the service proxy's metrics",
			"--kube-proxy-arg metrics-bind-address=IP:PORT"},
	} {
		if _, taken, err := net.SplitHostPort(other.address); err == nil && taken == strconv.Itoa(port) {
			p.add(fmt.Errorf("https-listen-port %d%s is the port of %s: choose another, or move that with %s", port,
				v.From("https-listen-port"), other.purpose, other.setting))
		}
	}
}

// token returns the join token of --token or --token-file.
func token(v settings.Values) (string, error) {
	text, file := v.String("token"), v.String("token-file")
	if file == "" {
		return text, nil
	}
	if text != "" {
		return "", fmt.Errorf("token%s and token-file%s are both set: give one of them", v.From("token"),
			v.From("token-file"))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read token-file: %w", err)
	}
	text = strings.TrimSpace(string(data))
	if text == "" {
		return "", fmt.Errorf("token-file %s is empty: write the token into it, or leave the setting out", file)
	}
	return text, nil
}

// parser reads addresses and keeps the faults.
type parser struct{ errs []error }

func (p *parser) add(err error) {
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

// kubeletArgs are the arguments for the kubelet, with what their files say about other parts.
func (p *parser) kubeletArgs(v settings.Values) []string {
	args, err := agent.KubeletArgs(v.List("kubelet-arg"))
	p.add(err)
	return args
}

// check looks closer, unless a fault is known: it takes values of the right form.
func (p *parser) check(closer ...func() error) {
	if len(p.errs) > 0 {
		return
	}
	for _, check := range closer {
		p.add(check())
	}
}

func (p *parser) ips(v settings.Values, name string, words []string) []net.IP {
	var out []net.IP
	for _, w := range words {
		ip := net.ParseIP(w)
		if ip == nil {
			p.add(fmt.Errorf("%s %q%s is no IP address: write it as 192.0.2.10 or 2001:db8::10", name, w, v.From(name)))
			continue
		}
		out = append(out, ip)
	}
	return out
}

// mode reads permissions in octal; zero if there are none.
func (p *parser) mode(v settings.Values, name string) fs.FileMode {
	text := v.String(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0o"), 8, 12)
	if err != nil || n == 0 {
		p.add(fmt.Errorf("%s %q%s is no octal number: write it as 0600 or 0640", name, text, v.From(name)))
		return 0
	}
	return fs.FileMode(n)
}

// group finds a group of this machine by name or number; zero if there is none.
func (p *parser) group(v settings.Values, name string) int {
	text := v.String(name)
	if text == "" {
		return 0
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return int(n)
	}
	g, err := user.LookupGroup(text)
	if err != nil {
		var unknown user.UnknownGroupError
		if errors.As(err, &unknown) {
			err = errors.New("this machine has no such group: make it with groupadd, or give another")
		}
		p.add(fmt.Errorf("%s %q%s: %w", name, text, v.From(name), err))
		return 0
	}
	n, err := strconv.Atoi(g.Gid)
	p.add(err)
	return n
}

// disableable are the parts of both roles that can be disabled.
func disableable() []string {
	names := append(server.Disableable(), agent.Disableable()...)
	slices.Sort(names)
	return slices.Compact(names)
}

// disable refuses names that no part has.
func (p *parser) disable(names, known []string) {
	for _, name := range names {
		if !slices.Contains(known, name) {
			what := "the names are " + strings.Join(known, ", ")
			if answer := habits.Component(name); answer != "" {
				what = answer + "; " + what
			}
			p.add(fmt.Errorf("disable: there is no service %q: %s", name, what))
		}
	}
}

func (p *parser) addrs(v settings.Values, name string) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.ips(v, name, v.List(name)) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func (p *parser) nets(v settings.Values, name string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range v.List(name) {
		r, err := netip.ParsePrefix(w)
		switch {
		case err != nil:
			p.add(fmt.Errorf("%s %q%s is no address range: write it as ADDRESS/BITS, such as %s", name, w, v.From(name),
				p.example(name)))
		case r != r.Masked():
			p.add(fmt.Errorf("%s %q%s does not start where its range does: write %s", name, w, v.From(name),
				r.Masked()))
		default:
			out = append(out, r)
		}
	}
	return out
}

func (*parser) example(name string) string {
	if name == "service-cidr" {
		return clusterconfig.DefaultServiceCIDR
	}
	return clusterconfig.DefaultClusterCIDR
}
