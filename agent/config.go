package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mote-dev/mote/agent/join"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/nodename"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime"
)

// Config is everything a node can be told. Only the command line fills it in; nothing writes to it
// after New.
type Config struct {
	// DataDir is the same folder a server takes; the node keeps its state in its agent/ and bin/
	// parts. An absolute path; there is no default here.
	DataDir string
	// NodeName is the name the node registers under, as nodename.Validate takes it. There is no
	// default here: the command line takes the host's name.
	NodeName string
	// NodeIPs are the node's addresses, at most one of each family. Empty means: found from the
	// default route, else loopback, and followed when the network changes.
	NodeIPs []net.IP

	// Cluster is what the server in this process runs with. It stays zero without one: the server a
	// node joins sends it.
	Cluster clusterconfig.Config

	// KubeletArgs are "flag=value" settings handed to the kubelet last, so they win over mote's
	// own.
	KubeletArgs []string
	// ProxyArgs are "flag=value" settings of the service proxy; see [netproxy.ParseArgs].
	ProxyArgs []string
	// NodeLabels ("key=value") and NodeTaints ("key=value:Effect") are set when the node first
	// registers; later changes belong to the API.
	NodeLabels []string
	NodeTaints []string
	// Disable names in-process services that shall not run on this node, beside those that run on
	// none.
	Disable []string

	// RegistriesFile sets mirrors and credentials of image registries. Empty means
	// [DefaultRegistriesFile], which alone may be missing.
	RegistriesFile string

	// ResolvConf is the file that names the host's resolvers. Pods with the host's DNS get its
	// search domains, too. Empty means /etc/resolv.conf without its search domains.
	ResolvConf string

	// Servers are where a node without a server in its process joins, each in a form that
	// [joinapi.ParseServer] reads. Empty means the server is in this process, or known from an
	// earlier join.
	Servers []string
	// Token is what the node joins with the first time; empty beside a server.
	Token string
	// ExternalIPs are addresses the node is known by outside of its network, at most one of each
	// family; empty means none.
	ExternalIPs []net.IP

	// Debug makes every part log more.
	Debug bool
	// Logger receives all log lines. Nil means none are kept.
	Logger *zap.Logger
	// Failed hears what Run will return as soon as a part failed, before the others have stopped.
	// Nil means that nobody asks.
	Failed func(error)
}

// DefaultRegistriesFile is where registry mirrors and credentials are read.
const DefaultRegistriesFile = runtime.DefaultRegistriesFile

// CheckRegistries reads the registries file as the node will, and reports its faults, each with its
// line. It changes nothing.
func (c Config) CheckRegistries() error {
	file := c.RegistriesFile
	if file == "" {
		file = DefaultRegistriesFile
	}
	_, err := runtime.ReadRegistries(file)
	return err
}

// maxDataDir is what the kernel's limit of 107 characters for the path of a socket leaves before
// "/agent/kubelet/device-plugins/kubelet.sock".
const maxDataDir = 107 - 42

// Validate joins every fault of the config, each one line that names the setting and says what
// would be right. It looks at the values only.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !filepath.IsAbs(c.DataDir) {
		fault("data-dir %q is not an absolute path: give one that starts with /", c.DataDir)
	}
	if len(c.DataDir) > maxDataDir {
		fault("data-dir %s is %d characters long: give one of at most %d, as sockets lie below it", c.DataDir,
			len(c.DataDir), maxDataDir)
	}
	if err := nodename.Validate(c.NodeName); err != nil {
		errs = append(errs, err)
	}
	for _, a := range c.KubeletArgs {
		if !strings.Contains(a, "=") {
			fault("kubelet-arg %q has no value: write it as flag=value", a)
		}
	}
	if _, err := netproxy.ParseArgs(c.ProxyArgs); err != nil {
		errs = append(errs, err)
	}
	for _, l := range c.NodeLabels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || len(validation.IsQualifiedName(key)) > 0 || len(validation.IsValidLabelValue(value)) > 0 {
			fault("node-label %q is no label: write it as key=value", l)
		}
	}
	seen := map[string]bool{}
	for _, t := range c.NodeTaints {
		if !validTaint(t) {
			fault("node-taint %q is no taint: write it as key=value:NoSchedule, :PreferNoSchedule or :NoExecute", t)
			continue
		}
		spec, effect, _ := strings.Cut(t, ":")
		key, _, _ := strings.Cut(spec, "=")
		// The API refuses a node that has two.
		if seen[key+":"+effect] {
			fault("node-taint %q: there is another taint %s with the effect %s: leave one out", t, key, effect)
		}
		seen[key+":"+effect] = true
	}
	if err := clusterconfig.ValidateFamilies("node-ip", hostAddresses(c.NodeIPs)); err != nil {
		errs = append(errs, err)
	}
	for _, ip := range c.NodeIPs {
		if ip.IsUnspecified() || ip.IsMulticast() {
			fault("node-ip %s is no address of a host: give one that other machines reach this one at", ip)
		}
	}
	if err := clusterconfig.ValidateFamilies("node-external-ip", hostAddresses(c.ExternalIPs)); err != nil {
		errs = append(errs, err)
	}
	if c.RegistriesFile != "" && !filepath.IsAbs(c.RegistriesFile) {
		fault("registries-file %q is not an absolute path: give one that starts with /", c.RegistriesFile)
	}
	if c.ResolvConf != "" && !filepath.IsAbs(c.ResolvConf) {
		fault("resolv-conf %q is not an absolute path: give one that starts with /", c.ResolvConf)
	}
	for _, server := range c.Servers {
		if _, err := joinapi.ParseServer(server); err != nil {
			fault("server %q is %w", server, err)
		}
	}
	if c.Token != "" {
		if _, err := joinapi.ParseToken(c.Token); err != nil {
			errs = append(errs, err)
		}
	}
	for _, ip := range c.ExternalIPs {
		if ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() {
			fault("node-external-ip %s is no address of a host: give one that other machines reach this one at", ip)
		}
	}
	return errors.Join(errs...)
}

// ErrNoServer means that a node that has not joined was told no server. Where it lacks a token,
// that is [join.ErrNoToken].
var ErrNoServer = errors.New("server is missing")

// MayStart refuses a node that could not join: one that has not yet, and was not told where or with
// what.
func (c Config) MayStart() error {
	name, err := join.Name(datadir.At(c.DataDir).Agent().Identity())
	if err != nil || name != "" {
		return err
	}
	var errs []error
	if len(c.Servers) == 0 {
		errs = append(errs, fmt.Errorf(
			"%w: give --server https://HOST:6443, the address of the machine `mote server` runs on", ErrNoServer))
	}
	if c.Token == "" {
		errs = append(errs, fmt.Errorf(
			"%w: give --token, --token-file or MOTE_TOKEN, as `mote token create` on the server prints it",
			join.ErrNoToken))
	}
	return errors.Join(errs...)
}

func hostAddresses(ips []net.IP) []netip.Addr {
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

func validTaint(t string) bool {
	spec, effect, ok := strings.Cut(t, ":")
	if !ok {
		return false
	}
	switch corev1.TaintEffect(effect) {
	case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
	default:
		return false
	}
	key, value, _ := strings.Cut(spec, "=")
	return len(validation.IsQualifiedName(key)) == 0 && len(validation.IsValidLabelValue(value)) == 0
}
