package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/mote-dev/mote/agent/dns"
	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/hostaddr"
	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/internal/wallclock"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime"
)

// ErrAddressChanged ends Run when the machine has another address than the one
// the node was started with. A kubelet keeps its first one for as long as it
// runs, so the process has to start again; containers go on meanwhile.
var ErrAddressChanged = errors.New("the machine's address changed")

// ErrClockSetBack ends Run when the machine's clock was set back. A kubelet keeps
// the tokens it has got for its pods until they end by the clock, and until then
// the API server takes none of them that are dated in the future: the process has
// to start again to ask for others.
var ErrClockSetBack = errors.New("the machine's clock was set back")

// ErrNetworkBackendChanged ends Run when the servers have other nodes' pods
// reached in another way than the node was started with: all nodes have to do it
// alike, so none waits for somebody to start it again.
var ErrNetworkBackendChanged = errors.New("the cluster's network-backend changed")

// CuredByRestart reports whether an error that ended Run asks for no more than
// the process started again. Containers go on meanwhile.
func CuredByRestart(err error) bool {
	return errors.Is(err, ErrAddressChanged) || errors.Is(err, ErrClockSetBack) || errors.Is(err, ErrNetworkBackendChanged)
}

// maxSetBack is how far the clock may go back without anything's being wrong for
// longer than that: about what the API server lets a token's date differ.
const maxSetBack = time.Minute

// Connection is how a node reaches its API server and proves who it is.
type Connection struct {
	// REST speaks with the node's rights.
	REST *rest.Config
	// Informers are the server's own when it runs in this process; nil on a
	// machine without one.
	Informers informers.SharedInformerFactory
	// ServingCertFile and ServingKeyFile are the kubelet's HTTPS identity; both
	// empty makes the kubelet ask the cluster for a certificate and renew it.
	// ClientCAFile is the authority of those who may call it.
	ServingCertFile, ServingKeyFile, ClientCAFile string
	// CloseAll ends all connections to the server after heartbeats have failed;
	// nil where there is none to end.
	CloseAll func()
	// Cluster is what the server says all nodes must agree on.
	Cluster clusterconfig.Config
	// Remembers says that lists which no server answers are answered as they were
	// last, also after a restart. Parts of the node then keep none of their own:
	// of two copies the older one could win.
	Remembers bool
	// Keep keeps the connection until its context ends, knowing what the node's
	// informers know; nil if it needs nothing.
	Keep func(ctx context.Context, shared informers.SharedInformerFactory) error
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

// New checks c, sets the process's feature gates, and returns a node that has not
// touched anything yet. progress hears of long work of the runtime; it may be nil.
func New(c Config, connect Connect, progress func(phase, name string, done, total int64)) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := upstream.SetFeatureGates(nil, upstream.Args{Setting: "kubelet-arg", Args: c.KubeletArgs}); err != nil {
		return nil, err
	}
	rt, err := runtime.New(runtime.Config{
		DataDir:        filepath.Join(c.DataDir, "agent"),
		RegistriesFile: c.RegistriesFile,
		CgroupDriver:   upstreamflag.Value(c.KubeletArgs, "cgroup-driver", ""),
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
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return wallclock.Watch(ctx, a.lookAtClock) })
	g.Go(func() error { return a.runAt(ctx) })
	return g.Wait()
}

func (a *Agent) lookAtClock(now time.Time, set time.Duration) error {
	if set < -maxSetBack {
		return fmt.Errorf("%w by %s to %s", ErrClockSetBack, -set.Round(time.Second), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// runAt runs the node under its addresses, and ends when they change.
func (a *Agent) runAt(ctx context.Context) error {
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
		if connection.Informers == nil {
			connection.Informers = a.startInformers(ctx, g, client)
		}
		if connection.Keep != nil {
			g.Go(func() error {
				return named("connection to server", stopped(ctx, connection.Keep(ctx, connection.Informers)))
			})
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
		resolvers := newPodResolvers(filepath.Join(a.config.DataDir, "agent", "resolv.conf"), connection.Cluster.ClusterDNS)
		if _, err := resolvers.write(); err != nil {
			return err
		}
		g.Go(func() error { return resolvers.follow(ctx, a.config.Logger) })
		k, err := a.kubelet(connection, addresses, resolvers.file)
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
	return a.sayOutside(ctx, client)
}

// outsideRetry is the pause between attempts to say the outside address.
const outsideRetry = 10 * time.Second

// sayOutside tells the other nodes where to send their tunnels' packets when this
// node is behind a NAT.
func (a *Agent) sayOutside(ctx context.Context, client kubernetes.Interface) error {
	if len(a.config.ExternalIPs) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{netproxy.OutsideAnnotation: a.config.ExternalIPs[0].String()}}})
	if err != nil {
		return fmt.Errorf("write node-external-ip: %w", err)
	}
	var last error
	err = wait.PollUntilContextCancel(ctx, outsideRetry, true, func(ctx context.Context) (bool, error) {
		_, last = client.CoreV1().Nodes().Patch(ctx, a.config.NodeName, types.MergePatchType, patch, metav1.PatchOptions{})
		if apierrors.IsForbidden(last) || apierrors.IsInvalid(last) {
			return false, last
		}
		return last == nil, nil
	})
	if err != nil {
		return stopped(ctx, fmt.Errorf("say node-external-ip of node %s: %w", a.config.NodeName, err))
	}
	return nil
}

// startInformers runs the one set of informers that service proxy, network policy and DNS share on
// a node without a server.
func (a *Agent) startInformers(ctx context.Context, g *errgroup.Group, client kubernetes.Interface) informers.SharedInformerFactory {
	shared := informer.NewShared(informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(netproxy.Trim)))
	g.Go(func() error { return shared.Run(ctx) })
	return shared
}

// startNetwork adds service proxy, pod network and DNS to g.
func (a *Agent) startNetwork(ctx context.Context, g *errgroup.Group, connection Connection, client kubernetes.Interface, nodeAddresses []net.IP) error {
	c, cluster := a.config, connection.Cluster
	agentDir := filepath.Join(c.DataDir, "agent")
	disabled := slices.Concat(c.Disable, cluster.Disable)
	withDNS := len(cluster.ClusterDNS) > 0 && !slices.Contains(disabled, "dns")
	// Without DNS of ours, a service of the user's may have its address.
	var own []netip.Addr
	if withDNS {
		own = cluster.ClusterDNS
	}
	args, err := netproxy.ParseArgs(c.ProxyArgs)
	if err != nil {
		return named("service proxy", err)
	}
	proxy, err := netproxy.New(netproxy.Config{
		Client: client, Informers: connection.Informers, NodeName: c.NodeName, NodeIPs: nodeAddresses,
		Cluster: cluster, LocalServiceIPs: own,
		CNIConfDir: filepath.Join(agentDir, "cni", "conf"), CNIBinDir: filepath.Join(c.DataDir, "bin", "current"),
		StateDir: filepath.Join(agentDir, "cni"), Bridge: a.bridge(),
		DisablePolicy: slices.Contains(disabled, "network-policy"), Logger: c.Logger.Named("netproxy"),
		Mode: args.Mode, NodePortAddresses: args.NodePortAddresses, HealthzAddress: args.HealthzAddress, MetricsAddress: args.MetricsAddress,
	})
	if err != nil {
		return named("service proxy", err)
	}
	g.Go(func() error { return named("service proxy", stopped(ctx, proxy.Run(ctx))) })

	if !withDNS {
		return nil
	}
	addresses := make([]string, len(cluster.ClusterDNS))
	for i, ip := range cluster.ClusterDNS {
		addresses[i] = ip.String()
	}
	checkpoint := filepath.Join(agentDir, "dns.checkpoint")
	if connection.Remembers {
		checkpoint = ""
	}
	resolver, err := dns.New(dns.Config{
		Client: client, Informers: connection.Informers, NodeName: c.NodeName, ClusterDomain: cluster.ClusterDomain, ListenAddrs: addresses,
		ClusterCIDRs:   cluster.Ranges(),
		CheckpointFile: checkpoint, Logger: c.Logger.Named("dns"),
	})
	if err != nil {
		return named("DNS", err)
	}
	g.Go(func() error { return named("DNS", stopped(ctx, resolver.Run(ctx))) })
	return nil
}

func (a *Agent) kubelet(connection Connection, addresses []net.IP, resolvConf string) (kubelet.Config, error) {
	c := a.config
	agentDir := filepath.Join(c.DataDir, "agent")
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
		CloseAll:        connection.CloseAll,
		Runtime:         a.runtime.RuntimeService(),
		Images:          a.runtime.ImageService(),
		RuntimeSocket:   a.runtime.Socket(),
		ClusterDNS:      connection.Cluster.ClusterDNS,
		ClusterDomain:   connection.Cluster.ClusterDomain,
		ResolvConf:      resolvConf,
		CgroupRoot:      root,
		Labels:          labels,
		Taints:          taints,
		ExtraArgs:       c.KubeletArgs,
		Logger:          c.Logger.Named("kubelet"),
	}, nil
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
