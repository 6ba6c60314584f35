package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/mote-dev/mote/agent/kubelet"
	"github.com/mote-dev/mote/internal/clusterconfig"
	"github.com/mote-dev/mote/internal/datadir"
	"github.com/mote-dev/mote/internal/part"
	"github.com/mote-dev/mote/internal/upstreamflag"
	"github.com/mote-dev/mote/netproxy"
	"github.com/mote-dev/mote/runtime"
)

// ErrAddressChanged ends Run when the machine has another address than the one the node was started
// with. A kubelet keeps its first one for as long as it runs, so the process has to start again;
// containers go on meanwhile.
var ErrAddressChanged = errors.New("the machine's address changed")

// ErrClockSetBack ends Run when the machine's clock was set back. A kubelet keeps its pods' tokens
// until they expire by the clock, but the API server refuses tokens that are dated in the future:
// the process has to start again to ask for new ones.
var ErrClockSetBack = errors.New("the machine's clock was set back")

// ErrNetworkBackendChanged ends Run when the servers name another network backend than the node was
// started with. All nodes must use the same one, so the node starts again by itself.
var ErrNetworkBackendChanged = errors.New("the cluster's network-backend changed")

// CuredByRestart reports whether all that an error of Run asks for is that the process starts
// again. Containers go on meanwhile.
func CuredByRestart(err error) bool {
	return errors.Is(err, ErrAddressChanged) || errors.Is(err, ErrClockSetBack) ||
		errors.Is(err, ErrNetworkBackendChanged)
}

// maxSetBack is how far the clock may be set back without a new start: about as far into the future
// as the API server lets a token be dated.
const maxSetBack = time.Minute

// Connection is how a node reaches its API server and proves who it is.
type Connection struct {
	// REST speaks with the node's rights.
	REST *rest.Config
	// Informers are the server's own when it runs in this process; nil on a machine without one.
	Informers informers.SharedInformerFactory
	// ServingCertFile and ServingKeyFile are the kubelet's HTTPS identity; both empty makes the
	// kubelet ask the cluster for a certificate and renew it. ClientCAFile is the authority of
	// those who may call it.
	ServingCertFile, ServingKeyFile, ClientCAFile string
	// Servers returns the addresses, HOST:PORT, at which the node connects to servers; nil beside a
	// server.
	Servers func() []string
	// CloseAll ends all connections to the server after heartbeats have failed; nil where there is
	// none to end.
	CloseAll func()
	// Cluster is what the server says all nodes must agree on.
	Cluster clusterconfig.Config
	// Remembers says that while no server answers, lists are answered from their last responses,
	// also after a restart. Parts of the node then keep no copy of their own: of two copies the
	// older one could win.
	Remembers bool
	// Health returns the state of the node; nil beside a server.
	Health func() Health
	// Keep maintains the connection until its context ends, and reads the node's informers for it;
	// nil if there is nothing to maintain.
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
	parts   *part.Set[*node]
	// health is nil until the node has joined, and beside a server.
	health atomic.Pointer[func() Health]
}

// New checks c, sets the process's feature gates, and returns a node that has not touched anything
// yet. progress hears of long work of the runtime; it may be nil.
func New(c Config, connect Connect, progress func(phase, name string, done, total int64)) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := c.setFeatureGates(); err != nil {
		return nil, err
	}
	rt, err := runtime.New(runtime.Config{
		DataDir:        datadir.At(c.DataDir).Agent().Dir(),
		RegistriesFile: c.RegistriesFile,
		CgroupDriver:   upstreamflag.Value(c.KubeletArgs, "cgroup-driver", ""),
		Debug:          c.Debug,
		Logger:         c.Logger.Named("runtime"),
		Progress:       progress,
	})
	if err != nil {
		return nil, err
	}
	a := &Agent{
		config:  c,
		connect: connect,
		runtime: rt,
		ready:   make(chan struct{}),
	}
	if a.parts, err = a.newParts(); err != nil {
		return nil, err
	}
	return a, nil
}

// RuntimeReady is closed when containers can be started.
func (a *Agent) RuntimeReady() <-chan struct{} { return a.runtime.Ready() }

// Ready is closed when the API server has seen the node ready for pods.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run runs the node until ctx ends. Containers keep running when it returns.
func (a *Agent) Run(ctx context.Context) error { return a.parts.Run(ctx) }

// watchReady closes ready at the node's first Ready condition.
func (n *node) watchReady(ctx context.Context) error {
	list := cache.NewFilteredListWatchFromClient(n.client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll,
		func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", n.config.NodeName).String()
		})
	_, err := watchtools.UntilWithSync(ctx, list, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		object, ok := e.Object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		return slices.ContainsFunc(object.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}), nil
	})
	if err != nil {
		return stopped(ctx, fmt.Errorf("wait for node %s: %w", n.config.NodeName, err))
	}
	close(n.ready)
	if err := n.publishOutside(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// outsideRetry is the pause between attempts to publish the outside address.
const outsideRetry = 10 * time.Second

// publishOutside publishes where other nodes send their VXLAN packets when this node is behind a
// NAT.
func (n *node) publishOutside(ctx context.Context) error {
	if len(n.config.ExternalIPs) == 0 {
		return nil
	}
	patch, err := json.Marshal(
		map[string]any{"metadata": map[string]any{
			"annotations": map[string]string{netproxy.OutsideAnnotation: n.config.ExternalIPs[0].String()}}})
	if err != nil {
		return fmt.Errorf("write node-external-ip: %w", err)
	}
	var last error
	err = wait.PollUntilContextCancel(ctx, outsideRetry, true, func(ctx context.Context) (bool, error) {
		_, last = n.client.CoreV1().Nodes().Patch(ctx, n.config.NodeName, types.MergePatchType, patch,
			metav1.PatchOptions{})
		if apierrors.IsForbidden(last) || apierrors.IsInvalid(last) {
			return false, last
		}
		return last == nil, nil
	})
	if err != nil {
		return stopped(ctx, fmt.Errorf("say node-external-ip of node %s: %w", n.config.NodeName, err))
	}
	return nil
}

// kubeletConfig is what the kubelet runs with.
func (n *node) kubeletConfig() (kubelet.Config, error) {
	c := n.config
	dir := datadir.At(c.DataDir).Agent()
	root, err := n.cgroupRoot()
	if err != nil {
		return kubelet.Config{}, err
	}
	return kubelet.Config{
		RootDir:         dir.Kubelet(),
		ImageDir:        dir.Containerd(),
		StaticPodsDir:   dir.StaticPods(),
		PodLogsDir:      n.podLogsDir(),
		NodeName:        c.NodeName,
		NodeIPs:         n.addresses,
		REST:            n.connection.REST,
		ServingCertFile: n.connection.ServingCertFile,
		ServingKeyFile:  n.connection.ServingKeyFile,
		ClientCAFile:    n.connection.ClientCAFile,
		CloseAll:        n.connection.CloseAll,
		Runtime:         n.runtime.RuntimeService(),
		Images:          n.runtime.ImageService(),
		RuntimeSocket:   n.runtime.Socket(),
		ClusterDNS:      n.connection.Cluster.ClusterDNS,
		ClusterDomain:   n.connection.Cluster.ClusterDomain,
		ResolvConf:      n.resolvers.file,
		CgroupRoot:      root,
		Labels:          c.labels(),
		Taints:          c.taints(),
		ExtraArgs:       c.KubeletArgs,
		Logger:          c.Logger.Named("kubelet"),
	}, nil
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
