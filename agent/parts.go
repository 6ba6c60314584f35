package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/part"
	"github.com/mote-dev/mote/internal/resolvconf"
	"github.com/mote-dev/mote/internal/wallclock"
	"github.com/mote-dev/mote/netproxy"
)

// node is what the parts of a running agent share: each field is set by the part that makes it, for
// those that need it.
type node struct {
	*Agent
	// addresses are those the node is known by for as long as it runs.
	addresses  []net.IP
	connection Connection
	client     kubernetes.Interface
	// informers are the node's own to run; nil where the server's are used.
	informers *informer.Shared
	resolvers podResolvers
}

// parts are what a node is made of. The kubelet stops first, while everything it uses still works;
// containerd stops after it and leaves the containers running.
var parts = []part.Part[*node]{
	{
		Name:    "clock",
		Purpose: "starts the node again when the machine's clock was set back",
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			return part.Running{Run: func(ctx context.Context) error { return wallclock.Watch(ctx, n.checkClock) }}, nil
		},
	},
	{
		Name:    "address",
		Purpose: "starts the node again when the machine's address changed",
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			if len(n.config.NodeIPs) > 0 {
				n.addresses = n.config.NodeIPs
				return part.Running{Idle: "node-ip is set"}, nil
			}
			address, err := n.ownAddress()
			n.addresses = []net.IP{address}
			return part.Running{Run: func(ctx context.Context) error { return watchAddress(ctx, address) }}, err
		},
	},
	{
		Name:    "container-runtime",
		Purpose: "runs containers: containerd in this process",
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			return part.Running{Run: n.runtime.Run, Ready: n.runtime.Ready(), Durable: true}, nil
		},
	},
	{
		Name:    "server-connection",
		Purpose: "joins the cluster, keeps the node's certificate, and opens tunnels to the servers",
		New: func(ctx context.Context, n *node, _ part.Lead) (part.Running, error) {
			return n.newConnection(ctx)
		},
	},
	{
		Name:     "discovery",
		Purpose:  "finds a server that moved, by multicast DNS",
		Needs:    []string{"server-connection"},
		Optional: true,
	},
	{
		Name:    "informers",
		Purpose: "watch the API once for everything on the node",
		Needs:   []string{"server-connection"},
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			if n.informers == nil {
				return part.Running{Idle: "the server in this process has them"}, nil
			}
			return part.Running{Run: n.informers.Run}, nil
		},
	},
	{
		Name:    "service-proxy",
		Purpose: "routes services to pods, and pods to each other",
		Needs:   []string{"address", "informers"},
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			proxy, err := n.newProxy()
			if err != nil {
				return part.Running{}, err
			}
			return part.Running{Run: proxy.Run, Note: proxy.Note}, nil
		},
	},
	{
		Name:     "network-policy",
		Purpose:  "enforces network policies",
		Needs:    []string{"service-proxy"},
		Optional: true,
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			// newProxy has decided already whether the proxy enforces them.
			return part.Running{Idle: n.idle("network-policy")}, nil
		},
	},
	{
		Name:     "load-balancer",
		Purpose:  "lets services of type LoadBalancer use the node's addresses, but for ports the host listens on",
		Needs:    []string{"service-proxy"},
		Optional: true,
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			// newProxy has decided already whether the proxy reports the host's ports.
			return part.Running{Idle: n.idle("load-balancer")}, nil
		},
	},
	{
		Name:     "dns",
		Purpose:  "answers the cluster's names",
		Needs:    []string{"informers"},
		Optional: true,
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			if len(n.connection.Cluster.ClusterDNS) == 0 {
				return part.Running{Idle: "the cluster has no DNS address"}, nil
			}
			if why := n.idle("dns"); why != "" {
				return part.Running{Idle: why}, nil
			}
			resolver, err := n.newDNS()
			if err != nil {
				return part.Running{}, err
			}
			return part.Running{Run: resolver.Run, Note: resolver.Note}, nil
		},
	},
	{
		Name:    "host-resolvers",
		Purpose: "keep the resolv.conf that pods with the host's DNS get",
		Needs:   []string{"server-connection"},
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			n.resolvers = newPodResolvers(datadir.At(n.config.DataDir).Agent().ResolvConf(),
				n.config.ResolvConf, n.connection.Cluster.ClusterDNS, n.dnsAddresses())
			if _, err := n.resolvers.write(); err != nil {
				return part.Running{}, err
			}
			return part.Running{
				Run:  func(ctx context.Context) error { return n.resolvers.follow(ctx, n.config.Logger) },
				Note: n.resolvers.note,
			}, nil
		},
	},
	{
		Name:    "kubelet",
		Purpose: "runs the node's pods",
		Needs:   []string{"address", "container-runtime", "service-proxy", "dns", "host-resolvers"},
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			config, err := n.kubeletConfig()
			if err != nil {
				return part.Running{}, err
			}
			return part.Running{Run: func(ctx context.Context) error { return kubelet.Run(ctx, config) }}, nil
		},
	},
	{
		Name:    "node-status",
		Purpose: "waits until the API shows the node ready, and publishes its external address",
		Needs:   []string{"container-runtime", "server-connection"},
		New: func(_ context.Context, n *node, _ part.Lead) (part.Running, error) {
			return part.Running{Run: n.watchReady, Ready: n.ready}, nil
		},
	},
}

// Disableable are the parts of a node that Config.Disable and Config.Cluster.Disable may name.
func Disableable() []string { return part.Optional(parts) }

// newParts makes the set of parts that Run runs.
func (a *Agent) newParts() (*part.Set[*node], error) {
	set, err := part.NewSet(&node{Agent: a}, parts, part.Options{
		Disable: slices.Concat(a.config.Disable, a.config.Cluster.Disable),
		Failed:  a.config.Failed,
		Logger:  a.config.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("table of the node's parts: %w", err)
	}
	return set, nil
}

// Report returns the state of each part.
func (a *Agent) Report() []part.Status { return a.parts.Report() }

// checkClock refuses a clock that was set back too far.
func (n *node) checkClock(now time.Time, set time.Duration) error {
	if set < -maxSetBack {
		return fmt.Errorf("%w by %s to %s", ErrClockSetBack, -set.Round(time.Second), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// ownAddress is the machine's address now: a dummy one while it has no network.
func (n *node) ownAddress() (net.IP, error) {
	address, err := hostaddr.Current()
	if err != nil || !address.Equal(hostaddr.Dummy) {
		return address, err
	}
	n.config.Logger.Info("no network yet: the node goes by a dummy address until there is one",
		zap.Stringer("address", address))
	return address, hostaddr.EnsureDummy()
}

// watchAddress returns ErrAddressChanged once the machine has another address.
func watchAddress(ctx context.Context, address net.IP) error {
	if err := hostaddr.WaitChanged(ctx, address); err != nil {
		return err
	}
	return fmt.Errorf("%w from %s to %s", ErrAddressChanged, address, hostaddr.Preferred())
}

// newConnection connects to the API server, which joins the cluster if the node has not.
func (n *node) newConnection(ctx context.Context) (part.Running, error) {
	connection, err := n.connect(ctx)
	if err != nil {
		return part.Running{}, err
	}
	if err := netproxy.CheckHost(connection.Cluster); err != nil {
		return part.Running{}, err
	}
	if n.client, err = kubernetes.NewForConfig(connection.REST); err != nil {
		return part.Running{}, fmt.Errorf("make node client: %w", err)
	}
	if connection.Informers == nil {
		n.informers = informer.NewShared(informers.NewSharedInformerFactoryWithOptions(n.client, 0,
			informers.WithTransform(netproxy.Trim)))
		connection.Informers = n.informers
	}
	n.connection = connection
	if connection.Health != nil {
		n.health.Store(&connection.Health)
	}
	if connection.Keep == nil {
		return part.Running{}, nil
	}
	return part.Running{Run: func(ctx context.Context) error { return connection.Keep(ctx, connection.Informers) }}, nil
}

// runs reports whether a part that the cluster or this node may disable runs here.
func (n *node) runs(name string) bool {
	return !slices.Contains(n.config.Disable, name) && !n.connection.Cluster.Disabled(name)
}

// idle says why a part does not run here although this node did not disable it; empty if it runs.
func (n *node) idle(name string) string {
	if n.connection.Cluster.Disabled(name) {
		return "the server disables it for all nodes"
	}
	return ""
}

// dnsAddresses are those this node answers DNS on; nil if it does not.
func (n *node) dnsAddresses() []netip.Addr {
	if !n.runs("dns") {
		return nil
	}
	return n.connection.Cluster.ClusterDNS
}

func (n *node) newProxy() (*netproxy.Proxy, error) {
	c, dir := n.config, datadir.At(n.config.DataDir).Agent()
	args, err := netproxy.ParseArgs(c.ProxyArgs)
	if err != nil {
		return nil, err
	}
	return netproxy.New(netproxy.Config{
		Client:              n.client,
		Informers:           n.connection.Informers,
		Servers:             n.connection.Servers,
		NodeName:            c.NodeName,
		NodeIPs:             n.addresses,
		Cluster:             n.connection.Cluster,
		LocalServiceIPs:     n.dnsAddresses(),
		CNIConfDir:          dir.CNIConf(),
		CNIBinDir:           dir.Paths().CurrentBin(),
		StateDir:            dir.CNI(),
		Bridge:              n.bridge(),
		OwnInterfaces:       []string{dns.DefaultInterface},
		DisablePolicy:       !n.runs("network-policy"),
		DisableLoadBalancer: !n.runs("load-balancer"),
		Mode:                args.Mode,
		NodePortAddresses:   args.NodePortAddresses,
		HealthzAddress:      args.HealthzAddress,
		MetricsAddress:      args.MetricsAddress,
		Logger:              c.Logger.Named("netproxy"),
	})
}

func (n *node) newDNS() (*dns.Server, error) {
	cluster := n.connection.Cluster
	addresses := make([]string, len(cluster.ClusterDNS))
	for i, ip := range cluster.ClusterDNS {
		addresses[i] = ip.String()
	}
	checkpoint := datadir.At(n.config.DataDir).Agent().DNSCheckpoint()
	if n.connection.Remembers {
		checkpoint = ""
	}
	return dns.New(dns.Config{
		Client:         n.client,
		Informers:      n.connection.Informers,
		NodeName:       n.config.NodeName,
		ClusterDomain:  cluster.ClusterDomain,
		ListenAddrs:    addresses,
		ClusterCIDRs:   cluster.Ranges(),
		Resolvers:      resolvconf.Files(n.config.ResolvConf),
		CheckpointFile: checkpoint,
		Logger:         n.config.Logger.Named("dns"),
	})
}
