package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"
)

const (
	// DefaultClusterDomain is the domain when the config names none.
	DefaultClusterDomain = "cluster.local"
	// DefaultInterface is the interface the cluster DNS address is added to when the config names none.
	DefaultInterface = "mote-dns"
	// defaultPort is where listen addresses without a port listen.
	defaultPort = 53
	// defaultCacheBytes bounds the cache when the config does not.
	defaultCacheBytes = 2 << 20
)

// Config is what a [Server] is made of. It is not written to after [New].
type Config struct {
	// Client reads services, endpoint slices, namespaces and the ConfigMap kube-system/mote-dns, and writes events about that.
	Client kubernetes.Interface
	// Informers is the factory that the parts of this process share, whose owner runs the informers
	// and takes Start for a request; nil makes Run use one of its own.
	Informers informers.SharedInformerFactory
	// NodeName is the reporting node of events.
	NodeName string
	// ClusterDomain is the domain of the cluster; empty means cluster.local.
	ClusterDomain string
	// ListenAddrs are the cluster DNS addresses, each with or without a port (53).
	ListenAddrs []string
	// ClusterCIDRs are ranges of pods and services. Addresses in them that have no name are denied instead of being asked for
	// elsewhere.
	ClusterCIDRs []netip.Prefix
	// Interface is what the listen addresses are added to, made if it is missing; empty means mote-dns, "-" leaves
	// interfaces alone.
	Interface string
	// Resolvers are the files upstream resolvers are read from, the first that has usable ones counts; empty means
	// HostFiles.
	Resolvers []string
	// CheckpointFile keeps what is known over a restart; empty means it is not kept.
	CheckpointFile string
	// CacheBytes bounds the memory of cached foreign answers; zero means 2 MiB.
	CacheBytes int
	// Metrics is where the counters are registered; nil means the registry behind the /metrics of
	// every component of this process. Several servers on one registry share the counters.
	Metrics prometheus.Registerer
	// Logger receives what happens; nil means silence.
	Logger *zap.Logger
}

// Validate reports every fault of the config at once.
func (c Config) Validate() error {
	var errs []error
	if c.Client == nil && c.Informers == nil {
		errs = append(errs, errors.New("neither client nor informers"))
	}
	if len(c.ListenAddrs) == 0 {
		errs = append(errs, errors.New("no listen address"))
	}
	for _, a := range c.ListenAddrs {
		if _, err := parseServer(a); err != nil {
			errs = append(errs, fmt.Errorf("listen address: %w", err))
		}
	}
	if _, err := domainName(c.ClusterDomain); c.ClusterDomain != "" && err != nil {
		errs = append(errs, fmt.Errorf("cluster domain: %w", err))
	}
	if c.CheckpointFile != "" && !filepath.IsAbs(c.CheckpointFile) {
		errs = append(errs, fmt.Errorf("checkpoint file %q is not an absolute path", c.CheckpointFile))
	}
	if len(c.Interface) > 15 {
		errs = append(errs, fmt.Errorf("interface name %q is longer than 15 bytes", c.Interface))
	}
	return errors.Join(errs...)
}

// withDefaults returns c with zero values replaced.
func (c Config) withDefaults() Config {
	if c.ClusterDomain == "" {
		c.ClusterDomain = DefaultClusterDomain
	}
	c.ClusterDomain = strings.ToLower(strings.TrimSuffix(c.ClusterDomain, ".")) + "."
	if c.Interface == "" {
		c.Interface = DefaultInterface
	}
	if len(c.Resolvers) == 0 {
		c.Resolvers = HostFiles()
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = defaultCacheBytes
	}
	if c.Metrics == nil {
		c.Metrics = legacyregistry.Registerer()
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return c
}

// parseServer reads an address with or without a port.
func parseServer(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a.Unmap(), defaultPort), nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is neither ADDRESS nor ADDRESS:PORT", text)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}
