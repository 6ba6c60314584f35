package netproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"go.uber.org/zap"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/netproxy/podnet"
)

// Modes of the service proxy.
const (
	// ModeAuto chooses nftables if kernel and tool have what it needs, else iptables.
	ModeAuto     = ""
	ModeNFTables = "nftables"
	ModeIPTables = "iptables"
)

// Config configures a [Proxy]. It is not written to after [New].
type Config struct {
	// Client patches this node's Node object with the ports its host listens on. If Informers is
	// nil, it also reads services, endpoint slices, nodes and service CIDRs.
	Client kubernetes.Interface
	// Informers is the factory that the parts of this process share, so that no object is cached
	// twice. New requests the informers it needs from it. Its owner runs them, before or after New:
	// to Start it is only a request to start what was requested, and nothing here ends it, as with
	// internal/informer.Shared. Nil makes Run own one.
	Informers informers.SharedInformerFactory
	// Servers returns the addresses, HOST:PORT, at which this node connects to servers. They are
	// never routed to pods, nor are those behind the service kubernetes. Nil means that there are
	// none beside these.
	Servers func() []string
	// NodeName is the name of this node.
	NodeName string
	// NodeIPs are the node's addresses, the primary one first. They may be empty: the Node object
	// is not waited for.
	NodeIPs []net.IP
	// Cluster is what all nodes agree on, with its defaults filled in.
	Cluster clusterconfig.Config
	// LocalServiceIPs are service addresses that this node serves itself (cluster DNS). The service
	// proxy never handles them.
	LocalServiceIPs []netip.Addr
	// Mode forces the packet filter: "nftables" or "iptables". Empty probes.
	Mode string
	// CNIConfDir is the folder of the container runtime's network lists, CNIBinDir that of the CNI
	// plugins.
	CNIConfDir, CNIBinDir string
	// StateDir keeps address leases: <data-dir>/agent/cni.
	StateDir string
	// DisablePolicy leaves network policies unenforced.
	DisablePolicy bool
	// DisableLoadBalancer keeps the host's ports unreported, so that the server's load balancer
	// leaves this node out.
	DisableLoadBalancer bool
	// Bridge is the name of the pods' bridge; empty means mote0.
	Bridge string
	// OwnInterfaces are interfaces that the node makes beside this package's.
	OwnInterfaces []string
	// MTU of pods; zero means to derive it from the uplink.
	MTU int
	// NodePortAddresses limits the addresses NodePort services answer on, as CIDRs; empty means all
	// of the node.
	NodePortAddresses []string
	// HealthzAddress serves the proxy's health to load balancers (upstream's default:
	// 0.0.0.0:10256); empty disables it.
	HealthzAddress string
	// MetricsAddress serves the proxy's metrics and mode without authentication (upstream's
	// default: 127.0.0.1:10249); empty disables it.
	MetricsAddress string
	// Logger may be nil for no logs.
	Logger *zap.Logger
}

// Validate returns all errors of the config at once.
func (c Config) Validate() error {
	var errs []error
	if c.Client == nil {
		errs = append(errs, errors.New("no client"))
	}
	if c.NodeName == "" {
		errs = append(errs, errors.New("node name is empty"))
	}
	switch c.Mode {
	case ModeAuto, ModeNFTables, ModeIPTables:
	default:
		errs = append(errs, fmt.Errorf("proxy mode %q is none of nftables, iptables", c.Mode))
	}
	for _, cidr := range c.NodePortAddresses {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			errs = append(errs, fmt.Errorf("node port address: %w", err))
		}
	}
	errs = append(errs, c.podnet(ModeNFTables).Validate())
	return errors.Join(errs...)
}

// podnet returns the config of the pod network.
func (c Config) podnet(mode string) podnet.Config {
	return podnet.Config{
		NodeName:        c.NodeName,
		Cluster:         c.Cluster,
		LocalServiceIPs: c.LocalServiceIPs,
		Bridge:          c.Bridge,
		OwnInterfaces:   c.OwnInterfaces,
		Firewall:        podnet.Firewall(mode),
		ConfDir:         c.CNIConfDir,
		BinDir:          c.CNIBinDir,
		StateDir:        c.StateDir,
		MTU:             c.MTU,
		Logger:          c.Logger,
	}
}
