package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"

	"github.com/mote-dev/mote/internal/informer"
	"github.com/mote-dev/mote/internal/upstream"
	"github.com/mote-dev/mote/netproxy/podnet"
	"github.com/mote-dev/mote/netproxy/policy"
)

// healthTimeout is how long a change may wait for the kernel before the proxy calls itself unhealthy.
const healthTimeout = 2 * syncPeriod

// serviceTable is the nftables table upstream's proxier keeps, in each address family.
const serviceTable = "kube-proxy"

// OutsideAnnotation on a Node names the address other nodes see it at when it sits behind a NAT.
const OutsideAnnotation = "mote.dev/outside-ip"

// Proxy is the service proxy and the pod network of one node. Make it with [New].
type Proxy struct {
	cfg Config
	log *zap.Logger
	// own runs the informers if the config has none; else nil.
	own *informer.Shared
	// gate is how this package uses the informers: it takes our handlers away when Run ends, as shared informers go on.
	gate   *informer.Gate
	ready  chan struct{}
	node   nodeState
	health *healthcheck.ProxyHealthServer

	nodesMu sync.Mutex // serialises nodesChanged
	modeMu  sync.Mutex // guards mode
	mode    string     // the backend in use, empty before Run decided
}

// New checks the config, and that the host can have pods of the cluster's address families: without them other parts of the
// node would fail first, with errors that do not say why. It requests the informers it needs from the config's factory and
// sets the feature gates of the process, which decide on which addresses upstream's proxier serves NodePorts.
func New(c Config) (*Proxy, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check network config: %w", err)
	}
	if err := checkIPv6(c.Cluster); err != nil {
		return nil, err
	}
	if err := upstream.SetFeatureGates(nil); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	p := &Proxy{cfg: c, log: c.Logger, ready: make(chan struct{})}
	shared := c.Informers
	if shared == nil {
		p.own = informer.NewShared(informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithTransform(Trim)))
		shared = p.own
	}
	p.gate = informer.NewGate(shared, nil)
	p.gate.Core().V1().Services().Informer()
	p.gate.Core().V1().Nodes().Informer()
	p.gate.Discovery().V1().EndpointSlices().Informer()
	p.gate.Networking().V1().ServiceCIDRs().Informer()
	if !c.DisablePolicy {
		p.gate.Networking().V1().NetworkPolicies().Informer()
	}
	p.health = healthcheck.NewProxyHealthServer(c.HealthzAddress, healthTimeout, &p.node)
	return p, nil
}

// Ready is closed once all services known at start are in the kernel and pods can be given a network.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Mode is the backend in use, or empty before [Proxy.Run] chose one.
func (p *Proxy) Mode() string {
	p.modeMu.Lock()
	defer p.modeMu.Unlock()
	return p.mode
}

// Run keeps services and pod network until ctx ends. All rules stay then. It can be called once.
func (p *Proxy) Run(ctx context.Context) (err error) {
	if err := p.gate.Open(); err != nil {
		return err
	}
	defer func() {
		if closeErr := p.gate.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("stop watching: %w", closeErr))
		}
	}()
	mode, err := chooseMode(ctx, p.cfg.Mode, p.log)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("choose packet filter: %w", err)
	}
	p.modeMu.Lock()
	p.mode = mode
	p.modeMu.Unlock()
	p.log.Info("packet filter chosen", zap.String("mode", mode))
	klogCtx := klog.NewContext(ctx, zapr.NewLogger(upstreamLogger(p.log)))

	network, err := podnet.New(p.cfg.podnet(mode))
	if err != nil {
		return err
	}
	if err := removeOtherMode(klogCtx, mode); err != nil {
		p.log.Warn("leftover rules could not be removed", zap.Error(err))
	}
	for _, err := range setConntrack(klogCtx, upstreamConfig(mode, p.cfg).Linux.Conntrack) {
		// Containers and some VMs may not write these; the kernel's own limits serve a small node well.
		p.log.Info("connection tracking setting kept as it is", zap.Error(err))
	}
	proxier, err := newProxier(klogCtx, mode, p.cfg, p.health)
	if err != nil {
		return err
	}
	policies, err := p.policies(klogCtx)
	if err != nil {
		return err
	}
	watch, err := p.watch(proxier, network)
	if err != nil {
		return err
	}
	err = p.runParts(klogCtx, mode, proxier, network, policies, watch)
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("run network: %w", err)
}

// runParts runs everything until ctx ends or a part fails, and waits for all of it. policies may be nil.
func (p *Proxy) runParts(ctx context.Context, mode string, proxier proxy.Provider, network *podnet.Network,
	policies *policy.Controller, watch *watch,
) error {
	lost := make(chan struct{}, 1)
	network.RulesRemoved = func(table string, whole bool) {
		if policies != nil && (table == policy.Table || table == "") {
			policies.Poke()
		}
		if mode != ModeNFTables || !whole || (table != serviceTable && table != "") {
			return
		}
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	// Upstream's loop cannot be stopped: it ends with the process. Without our handlers nothing feeds it, so it only sleeps.
	go proxier.SyncLoop()
	g, ctx := errgroup.WithContext(ctx)
	if p.own != nil {
		g.Go(func() error { return p.own.Run(ctx) })
	}
	// A request to the owner of the informers, who decides when they end.
	p.gate.Start(wait.NeverStop)
	g.Go(func() error { return watch.run(ctx) })
	if policies != nil {
		g.Go(func() error { return policies.Run(ctx) })
	}
	g.Go(func() error { return network.Run(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-lost:
				p.restoreServices(ctx, proxier)
			}
		}
	})
	g.Go(func() error { return p.serveHTTP(ctx, "health", p.cfg.HealthzAddress, p.healthHandler()) })
	g.Go(func() error { return p.serveHTTP(ctx, "metrics", p.cfg.MetricsAddress, p.metricsHandler(mode)) })
	g.Go(func() error {
		for _, c := range []<-chan struct{}{watch.synced, network.Ready()} {
			select {
			case <-ctx.Done():
				return nil
			case <-c:
			}
		}
		close(p.ready)
		p.log.Info("network ready")
		return nil
	})
	return g.Wait()
}

// policies returns what enforces network policies, or nil where they are not
// wanted; then rules of a run in which they were are removed.
func (p *Proxy) policies(ctx context.Context) (*policy.Controller, error) {
	if p.cfg.DisablePolicy {
		return nil, policy.Cleanup(ctx)
	}
	return policy.New(p.cfg.NodeName, p.gate, p.log.Named("policy"))
}

// restoreServices makes the proxier write everything anew. It has no such method, but does so when the node's topology
// changes, also to what it was.
func (p *Proxy) restoreServices(ctx context.Context, proxier proxy.Provider) {
	p.log.Info("service rules were deleted by another program; writing them again")
	if err := ensureServiceTables(ctx); err != nil {
		p.log.Warn("service rules may take a minute to come back", zap.Error(err))
	}
	proxier.OnTopologyChange(p.node.topology())
}

// upstreamLogger quietens upstream's code, whose informational lines tell its authors more than its users.
func upstreamLogger(log *zap.Logger) *zap.Logger {
	if log.Core().Enabled(zap.DebugLevel) {
		return log
	}
	return log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
}

// nodesChanged hands the nodes to the pod network and this node's topology to the proxier. Heartbeats bring an update of
// every node each few minutes; both receivers compare before they act.
func (p *Proxy) nodesChanged(store cache.Store, proxier proxy.Provider, network *podnet.Network) {
	// One after the other, so that the list read last is the one handed on last.
	p.nodesMu.Lock()
	defer p.nodesMu.Unlock()
	var self *v1.Node
	var peers []podnet.Node
	for _, obj := range store.List() {
		node, ok := obj.(*v1.Node)
		switch {
		case !ok:
		case node.Name == p.cfg.NodeName:
			self = node
		default:
			peers = append(peers, networkNode(node))
		}
	}
	if self == nil {
		// The node is not registered yet, or was deleted while its pods run on: what is known stays.
		return
	}
	slices.SortFunc(peers, func(a, b podnet.Node) int { return strings.Compare(a.Name, b.Name) })
	if p.node.set(self) {
		proxier.OnTopologyChange(p.node.topology())
	}
	network.SetNodes(networkNode(self), peers)
}

// Trim drops from cached objects what neither this package nor a node's DNS reads, and what makes up most of their size. It is
// the transform of informers that nobody else uses.
func Trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	if p, ok := obj.(*v1.Pod); ok {
		p.Annotations = nil
		p.Spec.Volumes = nil
		p.Status = v1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	}
	if n, ok := obj.(*v1.Node); ok {
		outside, ok := n.Annotations[OutsideAnnotation]
		n.Annotations = nil
		if ok {
			n.Annotations = map[string]string{OutsideAnnotation: outside}
		}
		n.Status = v1.NodeStatus{Addresses: n.Status.Addresses}
	}
	return obj, nil
}

// networkNode reduces a Node object to what the pod network needs. The first internal address of each family counts, else
// the first external one.
func networkNode(n *v1.Node) podnet.Node {
	out := podnet.Node{Name: n.Name}
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	for _, text := range cidrs {
		if p, err := netip.ParsePrefix(text); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p)
		}
	}
	if ip, err := netip.ParseAddr(n.Annotations[OutsideAnnotation]); err == nil {
		out.Outside = ip.Unmap()
	}
	var have4, have6 bool
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type != kind || err != nil || (ip.Is4() && have4) || (ip.Is6() && have6) {
				continue
			}
			have4, have6 = have4 || ip.Is4(), have6 || ip.Is6()
			out.Addrs = append(out.Addrs, ip)
		}
	}
	return out
}

// nodeState holds the latest Node object of this node.
type nodeState struct {
	mu   sync.Mutex
	node *v1.Node
}

// Node implements what upstream's health server asks for.
func (s *nodeState) Node() *v1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// set remembers the node and reports whether its zone, the only topology label the proxier reads, changed.
func (s *nodeState) set(n *v1.Node) (zoneChanged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var old string
	if s.node != nil {
		old = s.node.Labels[v1.LabelTopologyZone]
	}
	s.node = n
	return old != n.Labels[v1.LabelTopologyZone]
}

// topology returns the node's labels that traffic distribution looks at.
func (s *nodeState) topology() map[string]string {
	out := make(map[string]string)
	if n := s.Node(); n != nil {
		if zone, ok := n.Labels[v1.LabelTopologyZone]; ok {
			out[v1.LabelTopologyZone] = zone
		}
	}
	return out
}

// shutdownTimeout bounds the end of what is served over HTTP.
const shutdownTimeout = 2 * time.Second
