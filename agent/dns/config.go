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

	"github.com/mote-dev/mote/internal/resolvconf"
)

const (
	// DefaultClusterDomain is used when the config has no cluster domain.
	DefaultClusterDomain = "cluster.local"
	// DefaultInterface is used when the config has no interface.
	DefaultInterface = "mote-dns"
	// defaultPort is used for addresses without a port.
	defaultPort = 53
	// defaultCacheBytes is used when the config has no limit.
	defaultCacheBytes = 2 << 20
)

// Config configures a [Server], which never writes to it.
type Config struct {
	// Client reads services, endpoint slices, namespaces and the ConfigMap kube-system/mote-dns,
	// and writes events about that ConfigMap.
	Client kubernetes.Interface
	// Informers is the factory that the parts of this process share, whose owner runs the informers
	// and takes Start for a request; nil makes Run use one of its own.
	Informers informers.SharedInformerFactory
	// NodeName is the node that events name as their source.
	NodeName string
	// ClusterDomain is the domain of the cluster; empty means cluster.local.
	ClusterDomain string
	// ListenAddrs are the cluster DNS addresses, each with or without a port; the default port
	// is 53.
	ListenAddrs []string
	// ClusterCIDRs are the ranges of pods and services. Reverse lookups of addresses in them are
	// never forwarded.
	ClusterCIDRs []netip.Prefix
	// Interface gets the listen addresses, and is created if it is missing; empty means mote-dns,
	// "-" leaves interfaces alone.
	Interface string
	// Resolvers are the files that name upstream resolvers, of which the first with usable ones
	// counts; empty means [resolvconf.Files] of no setting.
	Resolvers []string
	// CheckpointFile carries the known records over a restart; empty means none is written.
	CheckpointFile string
	// CacheBytes bounds the memory of cached foreign answers; zero means 2 MiB.
	CacheBytes int
	// Metrics is where the counters are registered; nil means the registry behind the /metrics of
	// every component of this process. Several servers on one registry share the counters.
	Metrics prometheus.Registerer
	// Logger may be nil for no log.
	Logger *zap.Logger
}

// Validate reports all errors of the config at once.
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

// withDefaults returns c with zero values replaced by defaults.
func (c Config) withDefaults() Config {
	if c.ClusterDomain == "" {
		c.ClusterDomain = DefaultClusterDomain
	}
	c.ClusterDomain = strings.ToLower(strings.TrimSuffix(c.ClusterDomain, ".")) + "."
	if c.Interface == "" {
		c.Interface = DefaultInterface
	}
	if len(c.Resolvers) == 0 {
		c.Resolvers = resolvconf.Files("")
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

// parseServer parses an address with or without a port.
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
