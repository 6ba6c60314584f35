package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/joinapi"
	"github.com/mote-dev/mote/internal/nodename"
)

// What a zero Config field stands for.
const (
	// DefaultDataDir is where a server keeps everything it makes.
	DefaultDataDir = "/var/lib/mote"
	// DefaultKubeconfigOutput is where the administrator's kubeconfig is written.
	DefaultKubeconfigOutput = "/etc/mote/kubeconfig.yaml"
	// DefaultHTTPSListenPort is the one port of the API server.
	DefaultHTTPSListenPort = joinapi.DefaultPort
	// DefaultDatastoreDurability makes every write wait for the disk.
	DefaultDatastoreDurability = DurabilityFull
)

// Values of Config.DatastoreDurability.
const (
	// DurabilityFull answers a write only when it is safe from a power cut.
	DurabilityFull = "full"
	// DurabilityRelaxed may lose the last moments before a power cut, never the consistency of the
	// file; it writes far less to flash cards.
	DurabilityRelaxed = "relaxed"
)

// Config is everything a server can be told. Only the command line fills it in; nothing writes to
// it after New.
type Config struct {
	// DataDir holds keys, store, images and unpacked tools. An absolute path; empty means
	// DefaultDataDir.
	DataDir string
	// NodeName is the name of the node this server runs as, as nodename.Validate takes it. Empty
	// means the one that the host's name makes.
	NodeName string
	// NodeIPs are the addresses this server is reached at, at most one of each family. Empty means:
	// found from the default route, else loopback, and followed when the network changes.
	NodeIPs []net.IP
	// BindAddress is where the HTTPS port listens. Nil means all addresses.
	BindAddress net.IP
	// HTTPSListenPort is the TCP port of the API server, 1 to 65535. Zero means
	// DefaultHTTPSListenPort.
	HTTPSListenPort int
	// TLSSANs are further host names and addresses the serving certificate is made out to, beside
	// the ones mote finds itself.
	TLSSANs []string

	// Cluster is what all servers and nodes agree on. Its Disable names parts of both roles that
	// run nowhere; those of nodes are not known here, so it is not validated.
	Cluster clusterconfig.Config

	// Token is the secret that agents join with, in one of the forms of joinapi.Token. A bootstrap
	// token becomes one of the cluster; a password, and whatever is given beside DatastoreEndpoint,
	// is held in memory only. Empty means a token is made at first start.
	Token string
	// KubeconfigOutput is the file the administrator's kubeconfig is written to. Empty means
	// DefaultKubeconfigOutput.
	KubeconfigOutput string
	// KubeconfigMode are that file's permissions. Zero means 0600, or 0640 with a KubeconfigGID.
	KubeconfigMode fs.FileMode
	// KubeconfigGID is the group it belongs to. Zero means root's.
	KubeconfigGID int

	// KubeAPIServerArgs, KubeControllerManagerArgs and KubeSchedulerArgs are "flag=value" settings
	// handed to the upstream options last, so they win.
	KubeAPIServerArgs         []string
	KubeControllerManagerArgs []string
	KubeSchedulerArgs         []string

	// DatastoreEndpoint is a comma-separated list of URLs of a real etcd cluster to use in place of
	// the built-in store: several servers can then share it, which know each other by Token. Empty
	// means built-in.
	DatastoreEndpoint string
	// DatastoreCAFile is the authority of that etcd's certificates, as PEM. Empty means those the
	// machine trusts.
	DatastoreCAFile string
	// DatastoreCertFile and DatastoreKeyFile are shown to that etcd, as PEM. Both empty means it
	// asks for none.
	DatastoreCertFile, DatastoreKeyFile string
	// DatastoreDurability is DurabilityFull or DurabilityRelaxed. Empty means
	// DefaultDatastoreDurability.
	DatastoreDurability string

	// Version is mote's own version, for nodes and people.
	Version string
	// Debug makes every part log more.
	Debug bool
	// Logger receives all log lines. Nil means none are kept.
	Logger *zap.Logger
	// Failed hears what Run will return as soon as a part failed, before the others have stopped.
	// Nil means that nobody asks.
	Failed func(error)
}

// WithDefaults returns c with each zero field replaced by what it stands for, except NodeIPs,
// BindAddress and Token, whose zero stays meaningful.
func (c Config) WithDefaults() (Config, error) {
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("read host name: %w", err)
		}
		c.NodeName = nodename.OfHost(name)
	}
	if c.HTTPSListenPort == 0 {
		c.HTTPSListenPort = DefaultHTTPSListenPort
	}
	c.Cluster = c.Cluster.WithDefaults()
	if c.KubeconfigOutput == "" {
		c.KubeconfigOutput = DefaultKubeconfigOutput
	}
	if c.KubeconfigMode == 0 {
		c.KubeconfigMode = 0o600
		if c.KubeconfigGID != 0 {
			c.KubeconfigMode = 0o640
		}
	}
	if c.DatastoreDurability == "" {
		c.DatastoreDurability = DefaultDatastoreDurability
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return c, nil
}

// Validate joins every fault of a config with its defaults filled in. Each is one line that names
// the setting and says what would be right. It looks at the values only, never at the host.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !filepath.IsAbs(c.DataDir) {
		fault("data-dir %q is not an absolute path: give one that starts with /", c.DataDir)
	} else if filepath.Clean(c.DataDir) == "/" {
		fault("data-dir must not be the root folder: give a folder of its own, such as %s", DefaultDataDir)
	}
	if err := nodename.Validate(c.NodeName); err != nil {
		errs = append(errs, err)
	}
	if err := clusterconfig.ValidateFamilies("node-ip", addrs(c.NodeIPs)); err != nil {
		errs = append(errs, err)
	}
	for _, ip := range c.NodeIPs {
		if ip.IsUnspecified() || ip.IsMulticast() {
			fault("node-ip %s is no address of a host: give one that other machines reach this one at", ip)
		}
	}
	if c.HTTPSListenPort < 1 || c.HTTPSListenPort > 65535 {
		fault("https-listen-port %d is no TCP port: use 1 to 65535", c.HTTPSListenPort)
	}
	for _, san := range c.TLSSANs {
		if net.ParseIP(san) == nil && len(validation.IsDNS1123Subdomain(strings.TrimPrefix(san, "*."))) > 0 {
			fault("tls-san %q is neither a host name nor an address", san)
		}
	}
	errs = append(errs, c.Cluster.Validate(), c.Cluster.ValidateNode(addrs(c.NodeIPs)))
	if c.Token != "" {
		if _, err := joinapi.ParseToken(c.Token); err != nil {
			errs = append(errs, err)
		}
	}
	if !filepath.IsAbs(c.KubeconfigOutput) {
		fault("kubeconfig-output %q is not an absolute path: give one that starts with /", c.KubeconfigOutput)
	}
	if c.KubeconfigMode&0o400 == 0 || c.KubeconfigMode&^0o644 != 0 {
		fault("kubeconfig-mode %04o is not for a file of this kind: give 0600, 0640 or 0644, of which the last lets "+
			"every user of the machine administrate the cluster", c.KubeconfigMode)
	}
	for name, args := range map[string][]string{
		"kube-apiserver-arg": c.KubeAPIServerArgs, "kube-controller-manager-arg": c.KubeControllerManagerArgs,
		"kube-scheduler-arg": c.KubeSchedulerArgs,
	} {
		for _, a := range args {
			if !strings.Contains(a, "=") {
				fault("%s %q has no value: write it as flag=value", name, a)
			}
		}
	}
	if c.DatastoreDurability != DurabilityFull && c.DatastoreDurability != DurabilityRelaxed {
		fault("datastore-durability %q is unknown: use %s or %s", c.DatastoreDurability, DurabilityFull,
			DurabilityRelaxed)
	}
	return errors.Join(append(errs, c.validateDatastore()...)...)
}

// validateDatastore checks what is said of an etcd.
func (c Config) validateDatastore() []error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	files := []struct{ setting, file string }{
		{"datastore-cafile", c.DatastoreCAFile}, {"datastore-certfile", c.DatastoreCertFile},
		{"datastore-keyfile", c.DatastoreKeyFile},
	}
	if c.DatastoreEndpoint == "" {
		for _, f := range files {
			if f.file != "" {
				fault("%s is for an etcd, and there is none: give --datastore-endpoint, or leave it out", f.setting)
			}
		}
		return errs
	}
	schemes := map[string]bool{}
	for _, ep := range c.datastoreEndpoints() {
		u, err := url.Parse(ep)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Port() == "" ||
			strings.Trim(u.Path, "/") != "" {
			fault("datastore-endpoint %q is no etcd URL: write it as https://HOST:2379", ep)
			continue
		}
		schemes[u.Scheme] = true
	}
	if len(schemes) == 2 {
		fault("datastore-endpoint has both http and https URLs: give those of one kind")
	}
	if schemes["http"] {
		for _, f := range files {
			if f.file != "" {
				fault("%s is for TLS, and datastore-endpoint has an http URL: write it as https://HOST:2379", f.setting)
			}
		}
	}
	if (c.DatastoreCertFile == "") != (c.DatastoreKeyFile == "") {
		fault("datastore-certfile and datastore-keyfile belong together: give both, or none")
	}
	if c.Token == "" && len(errs) == 0 {
		fault("datastore-endpoint needs a token: give all servers of that etcd the same --token-file or --token")
	}
	return errs
}

// datastoreEndpoints are the URLs of the etcd.
func (c Config) datastoreEndpoints() []string {
	var urls []string
	for ep := range strings.SplitSeq(c.DatastoreEndpoint, ",") {
		urls = append(urls, strings.TrimSuffix(strings.TrimSpace(ep), "/"))
	}
	return urls
}

func addrs(ips []net.IP) []netip.Addr {
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}
