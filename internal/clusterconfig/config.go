package clusterconfig

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// What a zero field of a Config stands for.
const (
	// DefaultClusterCIDR is the range pods take their addresses from.
	DefaultClusterCIDR = "10.42.0.0/16"
	// DefaultServiceCIDR is the range services take their addresses from.
	DefaultServiceCIDR = "10.43.0.0/16"
	// DefaultClusterDomain is the DNS domain of the cluster.
	DefaultClusterDomain = "cluster.local"
	// DefaultNetworkBackend works wherever nodes reach each other at all.
	DefaultNetworkBackend = BackendVXLAN
)

// The pod range each node gets out of the cluster CIDR, in prefix bits.
const (
	NodeMaskIPv4 = 24
	NodeMaskIPv6 = 64
)

// Backend is how packets reach pods on other nodes.
type Backend string

const (
	// BackendVXLAN encapsulates packets to other nodes in UDP port 8472. It works across routers.
	BackendVXLAN Backend = "vxlan"
	// BackendHostGW routes to other nodes directly. All nodes must share a link.
	BackendHostGW Backend = "host-gw"
	// BackendNone leaves traffic between nodes to the user's own network.
	BackendNone Backend = "none"
)

// Backends are all backends, the default first.
var Backends = []Backend{BackendVXLAN, BackendHostGW, BackendNone}

// Choices lists Backends for people.
func Choices() string { return strings.ReplaceAll(Join(Backends), ",", ", ") }

// Config is what every server and node of a cluster must agree on. A server takes it from its
// settings and sends it to the nodes that join; its JSON form is part of that protocol.
type Config struct {
	// ClusterCIDRs are the pod ranges, at most one per address family, the primary first. Empty
	// means DefaultClusterCIDR.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	// ServiceCIDRs are the service ranges, of the same families in the same order as ClusterCIDRs.
	// Empty means DefaultServiceCIDR.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// ClusterDNS are the addresses of the cluster's DNS service, each inside a service range. Empty
	// means the tenth address of each range.
	ClusterDNS []netip.Addr `json:"clusterDNS"`
	// ClusterDomain is the DNS domain of the cluster. Empty means DefaultClusterDomain.
	ClusterDomain string `json:"clusterDomain"`
	// NetworkBackend is how packets reach pods on other nodes. Empty means DefaultNetworkBackend,
	// also when a server sends it: servers from before there was a choice leave it out.
	NetworkBackend Backend `json:"networkBackend,omitempty"`
	// Disable names parts that run on no server and no node of the cluster.
	Disable []string `json:"disable,omitempty"`
}

// WithDefaults returns c with each zero field replaced by what it stands for.
func (c Config) WithDefaults() Config {
	if len(c.ClusterCIDRs) == 0 {
		c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix(DefaultClusterCIDR)}
	}
	if len(c.ServiceCIDRs) == 0 {
		c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix(DefaultServiceCIDR)}
	}
	if len(c.ClusterDNS) == 0 {
		for _, r := range c.ServiceCIDRs {
			c.ClusterDNS = append(c.ClusterDNS, NthAddress(r, 10))
		}
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = DefaultClusterDomain
	}
	if c.NetworkBackend == "" {
		c.NetworkBackend = DefaultNetworkBackend
	}
	return c
}

// Ranges are all addresses of the cluster's own: those of pods, then those of services.
func (c Config) Ranges() []netip.Prefix { return slices.Concat(c.ClusterCIDRs, c.ServiceCIDRs) }

// Contains reports whether an address is one of the cluster's own.
func (c Config) Contains(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	return ok && slices.ContainsFunc(c.Ranges(), func(r netip.Prefix) bool { return r.Contains(a.Unmap()) })
}

// HasIPv4 reports whether pods have IPv4 addresses.
func (c Config) HasIPv4() bool { return slices.ContainsFunc(c.ClusterCIDRs, isIPv4) }

// HasIPv6 reports whether pods have IPv6 addresses.
func (c Config) HasIPv6() bool {
	return slices.ContainsFunc(c.ClusterCIDRs, func(p netip.Prefix) bool { return !isIPv4(p) })
}

// Disabled reports whether the part called name runs nowhere in the cluster.
func (c Config) Disabled(name string) bool { return slices.Contains(c.Disable, name) }

// NthAddress is the address n steps above the start of a range. It is not valid if that is past the
// last address of the family.
func NthAddress(r netip.Prefix, n int) netip.Addr {
	a := r.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func isIPv4(p netip.Prefix) bool { return p.Addr().Is4() }
