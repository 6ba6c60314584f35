package netproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
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

// healthTimeout is how long a change may wait to be applied before the proxy reports itself
// unhealthy.
const healthTimeout = 2 * syncPeriod

// serviceTable is the nftables table of upstream's proxier, one per address family.
const serviceTable = "kube-proxy"

// OutsideAnnotation on a Node is its public address if it is behind a NAT.
const OutsideAnnotation = "mote.dev/outside-ip"

// Proxy is the service proxy and the pod network of one node. Make it with [New].
type Proxy struct {
	cfg Config
	log *zap.Logger
	// own runs the informers if the config has none; else nil.
	own *informer.Shared
	// gate is how this package uses the informers: it takes our handlers away when Run ends, as
	// shared informers go on.
	gate   *informer.Gate
	ready  chan struct{}
	node   nodeState
	health *healthcheck.ProxyHealthServer

	nodesMu sync.Mutex      // serialises nodesChanged
	modeMu  sync.Mutex      // guards what follows
	mode    string          // the packet filter in use, empty before Run has chosen one
	network *podnet.Network // nil before Run has made it
}

// New checks the config. It requests the informers it needs from the config's factory and sets the
// feature gates of the process, which decide on which addresses upstream's proxier serves
// NodePorts.
func New(c Config) (*Proxy, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check network config: %w", err)
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
		p.own = informer.NewShared(informers.NewSharedInformerFactoryWithOptions(c.Client, 0,
			informers.WithTransform(Trim)))
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

// Ready is closed once the rules of all services known at start are written and pods can get a
// network.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Mode returns the packet filter in use, or nothing before [Proxy.Run] has chosen one.
func (p *Proxy) Mode() string {
	p.modeMu.Lock()
	defer p.modeMu.Unlock()
	return p.mode
}

// Note says what keeps pods or services from being reached although the proxy works; empty if
// nothing does.
func (p *Proxy) Note() string {
	p.modeMu.Lock()
	network := p.network
	p.modeMu.Unlock()
	if network == nil {
		return ""
	}
	return network.Note()
}

// Run maintains services and pod network until ctx ends, and leaves all rules in place. It can be
// called once.
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
	p.modeMu.Lock()
	p.network = network
	p.modeMu.Unlock()
	if err := removeOtherMode(klogCtx, mode); err != nil {
		p.log.Warn("leftover rules could not be removed", zap.Error(err))
	}
	for _, err := range setConntrack(klogCtx, upstreamConfig(mode, p.cfg).Linux.Conntrack) {
		// Containers and some VMs may not write these; the kernel's own limits serve a small node
		// well.
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

// runParts runs everything until ctx ends or a part fails, and waits for all of it. policies may be
// nil.
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
	// Upstream's loop cannot be stopped: it ends with the process. Without our handlers nothing
	// feeds it, so it only sleeps.
	go proxier.SyncLoop()
	g, ctx := errgroup.WithContext(ctx)
	if p.own != nil {
		g.Go(func() error { return p.own.Run(ctx) })
	}
	// A request to the owner of the informers, who decides when they end.
	p.gate.Start(wait.NeverStop)
	g.Go(func() error { return watch.run(ctx) })
	if !p.cfg.DisableLoadBalancer {
		g.Go(func() error { return watch.ports.Run(ctx) })
	}
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

// policies returns the controller of network policies. If they are disabled it returns nil and
// removes the rules of earlier runs.
func (p *Proxy) policies(ctx context.Context) (*policy.Controller, error) {
	if p.cfg.DisablePolicy {
		return nil, policy.Cleanup(ctx)
	}
	return policy.New(p.cfg.NodeName, p.gate, p.log.Named("policy"))
}

// restoreServices makes the proxier rewrite all rules. It has no method for that, but does so on
// every topology change, even to the same topology.
func (p *Proxy) restoreServices(ctx context.Context, proxier proxy.Provider) {
	p.log.Info("service rules were deleted by another program; writing them again")
	if err := ensureServiceTables(ctx); err != nil {
		p.log.Warn("service rules may take a minute to come back", zap.Error(err))
	}
	proxier.OnTopologyChange(p.node.topology())
}

// upstreamLogger drops upstream's informational lines, which are meant for its developers, except
// at debug level.
func upstreamLogger(log *zap.Logger) *zap.Logger {
	if log.Core().Enabled(zap.DebugLevel) {
		return log
	}
	return log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
}

// nodesChanged passes the nodes to the pod network and this node's topology to the proxier.
// Heartbeats update every node every few minutes; both receivers act only on changes.
func (p *Proxy) nodesChanged(store cache.Store, proxier proxy.Provider, network *podnet.Network) {
	// Serialised, so that the list read last is also passed on last.
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
		// The node is not registered yet, or was deleted while its pods keep running: keep the
		// state as it is.
		return
	}
	slices.SortFunc(peers, func(a, b podnet.Node) int { return strings.Compare(a.Name, b.Name) })
	if p.node.set(self) {
		proxier.OnTopologyChange(p.node.topology())
	}
	network.SetNodes(networkNode(self), peers)
}

// serversChanged passes the addresses of the servers to the pod network: those behind the service
// kubernetes, and those this node connects to.
func (p *Proxy) serversChanged(store cache.Store, network *podnet.Network) {
	p.nodesMu.Lock()
	defer p.nodesMu.Unlock()
	var servers []netip.Addr
	add := func(text string) {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(servers, ip.Unmap()) {
			servers = append(servers, ip.Unmap())
		}
	}
	for _, obj := range store.List() {
		if s, ok := obj.(*discovery.EndpointSlice); ok && ofServers(s) {
			for _, e := range s.Endpoints {
				for _, text := range e.Addresses {
					add(text)
				}
			}
		}
	}
	if p.cfg.Servers != nil {
		for _, address := range p.cfg.Servers() {
			if host, _, err := net.SplitHostPort(address); err == nil {
				add(host)
			}
		}
	}
	slices.SortFunc(servers, netip.Addr.Compare)
	network.SetServers(servers)
}

// ofServers reports whether a slice has API servers behind the service kubernetes.
func ofServers(s *discovery.EndpointSlice) bool {
	return s.Namespace == v1.NamespaceDefault && s.Labels[discovery.LabelServiceName] == "kubernetes"
}

// Trim drops most of the size of cached objects: whatever neither this package nor a node's DNS
// reads. It is the transform of informers that nothing else shares.
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
		status := v1.NodeStatus{Addresses: n.Status.Addresses}
		for _, c := range n.Status.Conditions {
			// `mote status` of the node reads it. Heartbeats are left out, as they change all the
			// time.
			if c.Type == v1.NodeReady {
				status.Conditions = []v1.NodeCondition{{
					Type:    c.Type,
					Status:  c.Status,
					Reason:  c.Reason,
					Message: c.Message,
				}}
			}
		}
		n.Status = status
	}
	return obj, nil
}

// networkNode converts a Node object. The node's address in each family is its first internal one,
// else its first external one.
func networkNode(n *v1.Node) podnet.Node {
	out := podnet.Node{Name: n.Name, Since: n.CreationTimestamp.Time}
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

// Node implements the interface of upstream's health server.
func (s *nodeState) Node() *v1.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// set stores the node and reports whether its zone changed, the only topology label the proxier
// reads.
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

// topology returns the node's labels that traffic distribution uses.
func (s *nodeState) topology() map[string]string {
	out := make(map[string]string)
	if n := s.Node(); n != nil {
		if zone, ok := n.Labels[v1.LabelTopologyZone]; ok {
			out[v1.LabelTopologyZone] = zone
		}
	}
	return out
}

// shutdownTimeout bounds the shutdown of an HTTP server.
const shutdownTimeout = 2 * time.Second
