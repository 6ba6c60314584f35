package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
	"k8s.io/kubernetes/pkg/proxy"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	proxymetrics "k8s.io/kubernetes/pkg/proxy/metrics"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"
	"sigs.k8s.io/knftables"

	"github.com/mote-dev/mote/netproxy/podnet"
)

// Periods of upstream's proxiers.
const (
	// minSyncPeriod is the least time between two syncs; upstream's default.
	minSyncPeriod = time.Second
	// syncPeriod is the pause before a failed sync is repeated, and how often the iptables proxier
	// checks that its rules still exist. For nftables the kernel reports changes.
	syncPeriod = time.Minute
)

// upstreamConfig is the part of kube-proxy's configuration the proxiers read. It mirrors the
// defaults of pkg/proxy/apis/config/v1alpha1 in v1.37.2, which are made for a file and reachable
// only through its scheme.
func upstreamConfig(mode string, c Config) *kubeproxyconfig.KubeProxyConfiguration {
	masqueradeBit, maxPerCore, minConntrack := int32(14), int32(32*1024), int32(128*1024)
	localhostNodePorts := true
	out := &kubeproxyconfig.KubeProxyConfiguration{
		Mode: kubeproxyconfig.ProxyMode(mode),
		IPTables: kubeproxyconfig.KubeProxyIPTablesConfiguration{MasqueradeBit: &masqueradeBit,
			LocalhostNodePorts: &localhostNodePorts},
		NFTables:          kubeproxyconfig.KubeProxyNFTablesConfiguration{MasqueradeBit: &masqueradeBit},
		DetectLocalMode:   kubeproxyconfig.LocalModeClusterCIDR,
		NodePortAddresses: c.NodePortAddresses,
		SyncPeriod:        metav1.Duration{Duration: syncPeriod},
		MinSyncPeriod:     metav1.Duration{Duration: minSyncPeriod},
		Linux: kubeproxyconfig.KubeProxyLinuxConfiguration{
			Conntrack: kubeproxyconfig.KubeProxyConntrackConfiguration{
				MaxPerCore:            &maxPerCore,
				Min:                   &minConntrack,
				TCPEstablishedTimeout: &metav1.Duration{Duration: 24 * time.Hour},
				TCPCloseWaitTimeout:   &metav1.Duration{Duration: time.Hour},
			},
		},
	}
	if len(out.NodePortAddresses) == 0 {
		// Not the keyword for the node's own addresses: those change on home networks, and the
		// proxier reads them once. Loopback is named although the others include it: with
		// KubeProxyNFTablesLocalhostNodePorts (see internal/upstream), nftables mode serves TCP
		// ports there only if it is.
		out.NodePortAddresses = []string{"127.0.0.0/8", proxyutil.IPv4ZeroCIDR, "::1/128", proxyutil.IPv6ZeroCIDR}
	}
	for _, n := range c.Cluster.ClusterCIDRs {
		out.DetectLocal.ClusterCIDRs = append(out.DetectLocal.ClusterCIDRs, n.String())
	}
	return out
}

// conntrackParts splits the connection tracking settings, so that one that cannot be set does not
// block the others.
func conntrackParts(
	c kubeproxyconfig.KubeProxyConntrackConfiguration) []kubeproxyconfig.KubeProxyConntrackConfiguration {
	return []kubeproxyconfig.KubeProxyConntrackConfiguration{
		{MaxPerCore: c.MaxPerCore, Min: c.Min},
		{TCPEstablishedTimeout: c.TCPEstablishedTimeout},
		{TCPCloseWaitTimeout: c.TCPCloseWaitTimeout},
	}
}

// setConntrack sets the connection tracking limits and returns an error for each part that could
// not be set.
func setConntrack(ctx context.Context, c kubeproxyconfig.KubeProxyConntrackConfiguration) []error {
	var errs []error
	for _, part := range conntrackParts(c) {
		if err := conntrack.SetSysctls(ctx, &part); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// nodeAddresses returns the node's address in each family, or loopback, as upstream does: the
// proxiers need the addresses only to decide whether a load balancer's source ranges include the
// node.
func nodeAddresses(ips []net.IP) map[v1.IPFamily]net.IP {
	out := map[v1.IPFamily]net.IP{v1.IPv4Protocol: net.IPv4(127, 0, 0, 1), v1.IPv6Protocol: net.IPv6loopback}
	for i := len(ips) - 1; i >= 0; i-- {
		if ips[i].To4() != nil {
			out[v1.IPv4Protocol] = ips[i]
		} else {
			out[v1.IPv6Protocol] = ips[i]
		}
	}
	return out
}

// newProxier returns upstream's proxier for both address families, or for IPv4 if the host has no
// IPv6.
func newProxier(ctx context.Context, mode string, c Config, health *healthcheck.ProxyHealthServer) (proxy.Provider,
	error) {
	config := upstreamConfig(mode, c)
	proxymetrics.RegisterMetrics(config.Mode)
	detectors := map[v1.IPFamily]proxyutil.LocalTrafficDetector{
		v1.IPv4Protocol: proxyutil.NewNoOpLocalDetector(),
		v1.IPv6Protocol: proxyutil.NewNoOpLocalDetector(),
	}
	for family, cidrs := range proxyutil.MapCIDRsByIPFamily(config.DetectLocal.ClusterCIDRs) {
		detectors[family] = proxyutil.NewDetectLocalByCIDR(cidrs[0].String())
	}
	if mode == ModeNFTables {
		if err := ensureServiceTables(ctx); err != nil {
			return nil, err
		}
	}
	dual, err := ipv6Enabled()
	if err != nil {
		return nil, err
	}
	ips := nodeAddresses(c.NodeIPs)
	var proxier proxy.Provider
	switch {
	case mode == ModeNFTables && dual:
		proxier, err = nftables.NewDualStackProxier(ctx, config, detectors, c.NodeName, ips, nil, health, false)
	case mode == ModeNFTables:
		proxier, err = nftables.NewProxier(ctx, config, v1.IPv4Protocol, detectors[v1.IPv4Protocol], c.NodeName,
			ips[v1.IPv4Protocol], nil, health, false)
	default:
		proxier, err = newIPTablesProxier(ctx, c, config, dual, detectors, ips, health)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s proxier: %w", mode, err)
	}
	return proxier, nil
}

// ensureServiceTables creates the proxier's tables if they are missing. The proxier would create
// them itself, but first log that it cannot read them.
func ensureServiceTables(ctx context.Context) error {
	families := []knftables.Family{knftables.IPv4Family}
	dual, err := ipv6Enabled()
	if err != nil {
		return err
	}
	if dual {
		families = append(families, knftables.IPv6Family)
	}
	for _, family := range families {
		nft, err := knftables.New(family, serviceTable)
		if err != nil {
			return fmt.Errorf("open table %s: %w", serviceTable, err)
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{})
		if err := nft.Run(ctx, tx); err != nil {
			return fmt.Errorf("make table %s: %w", serviceTable, err)
		}
	}
	return nil
}

// newIPTablesProxier returns the proxier of iptables mode. dual is set if the host has IPv6;
// ip6tables may still be missing.
func newIPTablesProxier(ctx context.Context, c Config, config *kubeproxyconfig.KubeProxyConfiguration, dual bool,
	detectors map[v1.IPFamily]proxyutil.LocalTrafficDetector, ips map[v1.IPFamily]net.IP,
	health *healthcheck.ProxyHealthServer,
) (proxy.Provider, error) {
	missing := ErrNoIPv6
	if dual {
		err := probeIPTables(ctx, "ip6tables")
		if err == nil {
			tools := map[v1.IPFamily]utiliptables.Interface{
				v1.IPv4Protocol: utiliptables.New(utiliptables.ProtocolIPv4),
				v1.IPv6Protocol: utiliptables.New(utiliptables.ProtocolIPv6),
			}
			return iptables.NewDualStackProxier(ctx, config, tools, utilsysctl.New(), detectors, c.NodeName, ips, nil,
				health, false)
		}
		if !errors.Is(err, errNoIPTables) {
			return nil, fmt.Errorf("probe ip6tables: %w", err)
		}
		missing = fmt.Errorf("%w (%w)", ErrNoIP6Tables, err)
	}
	if c.Cluster.HasIPv6() {
		return nil, missing
	}
	return iptables.NewProxier(ctx, config, v1.IPv4Protocol, utiliptables.New(utiliptables.ProtocolIPv4),
		utilsysctl.New(),
		detectors[v1.IPv4Protocol], c.NodeName, ips[v1.IPv4Protocol], nil, health, false)
}

// removeOtherMode removes the service rules of a run in another mode, so that packets are not
// translated twice.
func removeOtherMode(ctx context.Context, mode string) error {
	var failed bool
	if mode == ModeNFTables {
		// Only if there is something to remove: running iptables may load kernel modules.
		if podnet.IPTablesInUse(ctx) {
			failed = iptables.CleanupLeftovers(ctx)
		}
	} else {
		failed = nftables.CleanupLeftovers(ctx)
	}
	if failed {
		return fmt.Errorf("remove service rules of another mode than %s: see the log", mode)
	}
	return nil
}
