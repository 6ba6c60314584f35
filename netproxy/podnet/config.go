package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// Firewall is the tool the node's own rules are written with.
type Firewall string

const (
	// FirewallNFTables writes one nftables table, replaced as a whole.
	FirewallNFTables Firewall = "nftables"
	// FirewallIPTables writes its own chains into the tables of iptables.
	FirewallIPTables Firewall = "iptables"
)

// DefaultBridge is the bridge pods are attached to when the config names none.
const DefaultBridge = "mote0"

// defaultCheckInterval bounds how long an unreported change stays unrepaired.
const defaultCheckInterval = 5 * time.Minute

// Config configures a [Network]. It is not written to after [New].
type Config struct {
	// NodeName is this node's name; the overlay's hardware address is derived from it.
	NodeName string
	// Cluster has the ranges of pods and services and the backend; it is valid. Traffic between
	// pods keeps its source address. On hosts without a default route the service ranges get a
	// route of their own.
	Cluster clusterconfig.Config
	// LocalServiceIPs are service addresses this node serves itself (cluster DNS); pods may always
	// reach port 53 there.
	LocalServiceIPs []netip.Addr
	// Bridge is the name of the pods' bridge; empty means [DefaultBridge].
	Bridge string
	// OwnInterfaces are interfaces that the node makes beside this package's. Their addresses may
	// be in the cluster's ranges.
	OwnInterfaces []string
	// Firewall is the tool for the node's rules; empty means [FirewallNFTables].
	Firewall Firewall
	// ConfDir is the folder the container runtime reads network lists from.
	ConfDir string
	// BinDir is the folder of the CNI plugins. Optional plugins found there are used.
	BinDir string
	// StateDir is where address leases are kept.
	StateDir string
	// MTU of pods; zero means the MTU of the default route's link less what the backend needs.
	MTU int
	// CheckInterval is how often rules are compared without a reported change; zero means five
	// minutes.
	CheckInterval time.Duration
	// Logger may be nil for no logs.
	Logger *zap.Logger
}

// Validate returns all errors of the config at once.
func (c Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name is empty"))
	}
	if len(c.Cluster.ClusterCIDRs) == 0 {
		errs = append(errs, errors.New("no cluster CIDR"))
	}
	for _, d := range []struct{ name, path string }{{"CNI config folder", c.ConfDir}, {"state folder", c.StateDir}} {
		if !filepath.IsAbs(d.path) {
			errs = append(errs, fmt.Errorf("%s %q is not an absolute path", d.name, d.path))
		}
	}
	// IFNAMSIZ is 16 with the closing zero byte.
	if len(c.Bridge) > 15 {
		errs = append(errs, fmt.Errorf("bridge name %q is longer than 15 bytes", c.Bridge))
	}
	if c.Cluster.NetworkBackend != "" {
		errs = append(errs, c.Cluster.NetworkBackend.Validate())
	}
	switch c.Firewall {
	case "", FirewallNFTables, FirewallIPTables:
	default:
		errs = append(errs, fmt.Errorf("firewall %q is none of nftables, iptables", c.Firewall))
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		errs = append(errs, fmt.Errorf("MTU %d is not between %d and %d", c.MTU, minMTU, maxMTU))
	}
	return errors.Join(errs...)
}

// withDefaults returns c with zero values replaced.
func (c Config) withDefaults() Config {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.Cluster.NetworkBackend == "" {
		c.Cluster.NetworkBackend = clusterconfig.DefaultNetworkBackend
	}
	if c.Firewall == "" {
		c.Firewall = FirewallNFTables
	}
	if c.CheckInterval == 0 {
		c.CheckInterval = defaultCheckInterval
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return c
}
