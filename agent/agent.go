package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/hostaddr"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime"
)

// ErrAddressChanged ends Run when the machine has another address than the one
// the node was started with. A kubelet keeps its first one for as long as it
// runs, so the process has to start again; containers go on meanwhile.
var ErrAddressChanged = errors.New("the machine's address changed")

// Connection is how a node reaches its API server and proves who it is.
type Connection struct {
	// REST speaks with the node's rights.
	REST *rest.Config
	// Informers are the server's own when it runs in this process; nil on a
	// machine without one.
	Informers informers.SharedInformerFactory
	// ServingCertFile and ServingKeyFile are the kubelet's HTTPS identity,
	// ClientCAFile is the authority of those who may call it.
	ServingCertFile, ServingKeyFile, ClientCAFile string
}

// Connect returns the connection of this node, waiting for what it needs.
type Connect func(ctx context.Context) (Connection, error)

// Agent is a node: container runtime, kubelet, service proxy, pod network and DNS.
type Agent struct {
	config  Config
	connect Connect
	runtime *runtime.Runtime
	ready   chan struct{}
}

// New checks c and returns a node that has not touched anything yet. progress
// hears of long work of the runtime; it may be nil.
func New(c Config, connect Connect, progress func(phase, name string, done, total int64)) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	rt, err := runtime.New(runtime.Config{
		DataDir:        filepath.Join(c.DataDir, "agent"),
		RegistriesFile: c.RegistriesFile,
		Debug:          c.Debug,
		Logger:         c.Logger.Named("runtime"),
		Progress:       progress,
	})
	if err != nil {
		return nil, err
	}
	return &Agent{config: c, connect: connect, runtime: rt, ready: make(chan struct{})}, nil
}

// RuntimeReady is closed when containers can be started.
func (a *Agent) RuntimeReady() <-chan struct{} { return a.runtime.Ready() }

// Ready is closed when the API server has seen the node ready for pods.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run runs the node until ctx ends. Containers go on when it returns.
func (a *Agent) Run(ctx context.Context) error {
	if len(a.config.NodeIPs) > 0 {
		return a.run(ctx, a.config.NodeIPs)
	}
	address := hostaddr.Preferred()
	if address.Equal(hostaddr.Dummy) {
		a.config.Logger.Info("no network yet: the node goes by a dummy address until there is one", zap.Stringer("address", address))
		if err := hostaddr.EnsureDummy(); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := hostaddr.WaitChanged(ctx, address); err != nil {
			return stopped(ctx, err)
		}
		return fmt.Errorf("%w from %s to %s", ErrAddressChanged, address, hostaddr.Preferred())
	})
	g.Go(func() error { return a.run(ctx, []net.IP{address}) })
	return g.Wait()
}

// run runs the node under fixed addresses.
func (a *Agent) run(ctx context.Context, addresses []net.IP) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return named("container runtime", stopped(ctx, a.runtime.Run(ctx))) })
	g.Go(func() error {
		connection, err := a.connect(ctx)
		if err != nil {
			return named("connect to API server", stopped(ctx, err))
		}
		client, err := kubernetes.NewForConfig(connection.REST)
		if err != nil {
			return fmt.Errorf("make node client: %w", err)
		}
		if err := a.startNetwork(ctx, g, connection, client, addresses); err != nil {
			return err
		}
		select {
		case <-a.runtime.Ready():
		case <-ctx.Done():
			return nil
		}
		g.Go(func() error { return a.watchReady(ctx, client) })
		k, err := a.kubelet(connection, addresses)
		if err != nil {
			return err
		}
		return named("kubelet", stopped(ctx, kubelet.Run(ctx, k)))
	})
	return g.Wait()
}

// watchReady closes ready at the node's first Ready condition.
func (a *Agent) watchReady(ctx context.Context, client kubernetes.Interface) error {
	list := cache.NewFilteredListWatchFromClient(client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", a.config.NodeName).String()
	})
	_, err := watchtools.UntilWithSync(ctx, list, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}), nil
	})
	if err != nil {
		return stopped(ctx, fmt.Errorf("wait for node %s: %w", a.config.NodeName, err))
	}
	close(a.ready)
	return nil
}

// startNetwork adds service proxy, pod network and DNS to g.
func (a *Agent) startNetwork(ctx context.Context, g *errgroup.Group, connection Connection, client kubernetes.Interface, nodeAddresses []net.IP) error {
	c := a.config
	agentDir := filepath.Join(c.DataDir, "agent")
	withDNS := len(c.ClusterDNS) > 0 && !slices.Contains(c.Disable, "dns")
	// Without DNS of ours, a service of the user's may have its address.
	var own []net.IP
	if withDNS {
		own = c.ClusterDNS
	}
	proxy, err := netproxy.New(netproxy.Config{
		Client: client, Informers: connection.Informers, NodeName: c.NodeName, NodeIPs: nodeAddresses,
		ClusterCIDRs: c.ClusterCIDRs, ServiceCIDRs: c.ServiceCIDRs, LocalServiceIPs: own,
		CNIConfDir: filepath.Join(agentDir, "cni", "conf"), CNIBinDir: filepath.Join(c.DataDir, "bin", "current"),
		StateDir: filepath.Join(agentDir, "cni"), Bridge: a.bridge(),
		DisablePolicy: slices.Contains(c.Disable, "network-policy"), Logger: c.Logger.Named("netproxy"),
	})
	if err != nil {
		return named("service proxy", err)
	}
	g.Go(func() error { return named("service proxy", stopped(ctx, proxy.Run(ctx))) })

	if !withDNS {
		return nil
	}
	addresses := make([]string, len(c.ClusterDNS))
	for i, ip := range c.ClusterDNS {
		addresses[i] = ip.String()
	}
	resolver, err := dns.New(dns.Config{
		Client: client, Informers: connection.Informers, NodeName: c.NodeName, ClusterDomain: c.ClusterDomain, ListenAddrs: addresses,
		ClusterCIDRs:   prefixes(slices.Concat(c.ClusterCIDRs, c.ServiceCIDRs)),
		CheckpointFile: filepath.Join(agentDir, "dns.checkpoint"), Logger: c.Logger.Named("dns"),
	})
	if err != nil {
		return named("DNS", err)
	}
	g.Go(func() error { return named("DNS", stopped(ctx, resolver.Run(ctx))) })
	return nil
}

func (a *Agent) kubelet(connection Connection, addresses []net.IP) (kubelet.Config, error) {
	c := a.config
	agentDir := filepath.Join(c.DataDir, "agent")
	resolvConf := filepath.Join(agentDir, "resolv.conf")
	if err := writeResolvConf(resolvConf); err != nil {
		return kubelet.Config{}, err
	}
	root, err := a.cgroupRoot()
	if err != nil {
		return kubelet.Config{}, err
	}
	labels := make(map[string]string, len(c.NodeLabels))
	for _, l := range c.NodeLabels {
		key, value, _ := strings.Cut(l, "=")
		labels[key] = value
	}
	var taints []corev1.Taint
	for _, t := range c.NodeTaints {
		spec, effect, _ := strings.Cut(t, ":")
		key, value, _ := strings.Cut(spec, "=")
		taints = append(taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
	return kubelet.Config{
		RootDir:         filepath.Join(agentDir, "kubelet"),
		PodLogsDir:      a.podLogsDir(),
		NodeName:        c.NodeName,
		NodeIPs:         addresses,
		REST:            connection.REST,
		ServingCertFile: connection.ServingCertFile,
		ServingKeyFile:  connection.ServingKeyFile,
		ClientCAFile:    connection.ClientCAFile,
		Runtime:         a.runtime.RuntimeService(),
		Images:          a.runtime.ImageService(),
		RuntimeSocket:   a.runtime.Socket(),
		ClusterDNS:      c.ClusterDNS,
		ClusterDomain:   c.ClusterDomain,
		ResolvConf:      resolvConf,
		CgroupRoot:      root,
		Labels:          labels,
		Taints:          taints,
		ExtraArgs:       c.KubeletArgs,
		Logger:          c.Logger.Named("kubelet"),
	}, nil
}

func prefixes(nets []*net.IPNet) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nets {
		// Both come from ParseCIDR, so they always convert.
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			ones, _ := n.Mask.Size()
			out = append(out, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return out
}

// named says which part an error came from.
func named(part string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", part, err)
}

// stopped drops an error that only says that ctx ended.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create folder %s: %w", dir, err)
	}
	return nil
}
