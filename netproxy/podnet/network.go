package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/mote-dev/mote/internal/retry"
	"github.com/mote-dev/mote/netproxy/reconcile"
)

// debounce is how long changes are gathered before they are acted on: interfaces come and go in
// bursts when pods start.
const debounce = 500 * time.Millisecond

// Pauses after failed passes. The longest is short because events from the kernel wait for it.
const firstRetry, lastRetry = time.Second, 10 * time.Second

// Node is what the pod network needs to know about a node.
type Node struct {
	Name     string
	PodCIDRs []netip.Prefix
	// Addrs are the addresses other nodes reach it at, at most one per family.
	Addrs []netip.Addr
	// Outside is its public address if it is behind a NAT; invalid otherwise.
	Outside netip.Addr
	// Since is when its Node was made: of two nodes that claim the same the older one is believed.
	Since time.Time
}

// Network keeps the pod network of this node in its wanted state. Make it with [New].
type Network struct {
	cfg       Config
	firewalls []firewall
	log       *zap.Logger

	ready     chan struct{}
	readyOnce sync.Once
	loop      *reconcile.Loop

	mu           sync.Mutex // guards the fields below
	nodes        remembered
	known        bool // nodes are known, so an absent peer is really gone
	rulesChanged bool // the next pass compares the rules
	leaseGone    bool // an address was given back since the last pass
	note         string

	leases  map[netip.Addr]bool // of the last pass; nil before the first; only the loop uses it
	skipped retry.Failures      // nodes left out, as last logged; only the loop uses it

	// RulesRemoved, if set before Run, is called with the name of an nftables table when the table
	// (whole) or something in it was deleted, and with an empty name when deletions may have been
	// missed. It must not block.
	RulesRemoved func(table string, whole bool)
}

// New checks the config, and that no other network of the host takes the pods' addresses.
func New(c Config) (*Network, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("check pod network config: %w", err)
	}
	c = c.withDefaults()
	if err := checkOverlaps(c); err != nil {
		return nil, err
	}
	n := &Network{
		cfg:          c,
		firewalls:    newFirewalls(c.Firewall),
		log:          c.Logger,
		ready:        make(chan struct{}),
		rulesChanged: true,
	}
	n.loop = reconcile.New(n.passes(n.pass))
	return n, nil
}

// passes is the schedule of pass.
func (n *Network) passes(pass func(ctx context.Context, full bool) error) reconcile.Config {
	return reconcile.Config{
		Debounce:   debounce,
		Interval:   n.cfg.CheckInterval,
		FirstRetry: firstRetry,
		LastRetry:  lastRetry,
		Pass:       pass,
		Failed: func(err error, pause time.Duration) {
			n.log.Error("pod network is incomplete; retrying", zap.Error(err), zap.Duration("retry_in", pause))
		},
		Recovered: func() { n.log.Info("pod network is complete again") },
	}
}

// SetNodes sets this node and its peers. It returns at once; [Network.Run] applies them.
func (n *Network) SetNodes(self Node, peers []Node) {
	n.mu.Lock()
	same := n.known && equalNode(n.nodes.Self, self) && slices.EqualFunc(n.nodes.Peers, peers, equalNode)
	n.nodes.Self, n.nodes.Peers, n.known = self, peers, true
	n.mu.Unlock()
	if !same {
		n.poke(false)
	}
}

// SetServers sets the addresses of the servers, which are never routed to pods. It returns at once;
// [Network.Run] applies them. None leaves those that were known.
func (n *Network) SetServers(servers []netip.Addr) {
	n.mu.Lock()
	same := len(servers) == 0 || slices.Equal(n.nodes.Servers, servers)
	if !same {
		n.nodes.Servers = servers
	}
	n.mu.Unlock()
	if !same {
		n.poke(false)
	}
}

func equalNode(a, b Node) bool {
	return a.Name == b.Name && slices.Equal(a.PodCIDRs, b.PodCIDRs) && slices.Equal(a.Addrs, b.Addrs) &&
		a.Outside == b.Outside && a.Since.Equal(b.Since)
}

// Ready is closed once the rules are applied and the runtime has a network list, possibly that of
// an earlier run.
func (n *Network) Ready() <-chan struct{} { return n.ready }

// poke triggers a pass of Run's loop, with rules one that compares the rules.
func (n *Network) poke(rules bool) {
	if rules {
		n.mu.Lock()
		n.rulesChanged = true
		n.mu.Unlock()
	}
	n.loop.Trigger()
}

// Run maintains the network until ctx ends. It then leaves everything in place, because pods
// outlive this process.
func (n *Network) Run(ctx context.Context) error {
	if dropped, err := dropStaleLeases(n.cfg.StateDir); err != nil {
		n.log.Warn("stale address leases could not be dropped", zap.Error(err))
	} else if dropped > 0 {
		n.log.Info("dropped address leases of an earlier boot", zap.Int("count", dropped))
	}
	if r, ok, err := recall(n.cfg.StateDir, n.cfg.NodeName); err != nil {
		n.log.Warn("saved nodes are not usable; waiting for the server's", zap.Error(err))
	} else if ok {
		n.mu.Lock()
		if len(n.nodes.Servers) == 0 {
			n.nodes.Servers = r.Servers
		}
		if !n.known {
			n.nodes.Self, n.nodes.Peers, n.known = r.Self, r.Peers, true
		}
		n.mu.Unlock()
	}
	if err := n.removeOtherFirewall(ctx); err != nil {
		n.log.Warn("rules written with another tool could not be removed", zap.Error(err))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return watchLinks(ctx, n.log, func() { n.poke(false) }) })
	g.Go(func() error { return watchRules(ctx, n.log, n.ruleEvent) })
	g.Go(func() error { return n.watchLeases(ctx, n.leaseRemoved) })
	g.Go(func() error { return n.keepMapped(ctx) })
	g.Go(func() error { return n.loop.Run(ctx) })
	return g.Wait()
}

// removeOtherFirewall removes the rules an earlier run wrote with the other tool.
func (n *Network) removeOtherFirewall(ctx context.Context) error {
	if n.cfg.Firewall == FirewallIPTables {
		return newNFTFirewall().Remove(ctx)
	}
	if !IPTablesInUse(ctx) {
		return nil
	}
	return (&iptablesFirewall{}).Remove(ctx)
}

// ruleEvent triggers a pass if a change of the host's rules may affect ours.
func (n *Network) ruleEvent(ev nftEvent) {
	lost := ev == nftEvent{}
	removed := ev.kind == nftDelChain || ev.kind == nftDelRule || ev.kind == nftDelSet || ev.kind == nftDelElement
	if (lost || removed || ev.kind == nftDelTable) && n.RulesRemoved != nil {
		n.RulesRemoved(ev.table, !removed)
	}
	switch {
	case lost, ev.kind == nftDelTable:
		n.poke(true)
	case ev.table == Table && (removed || ev.kind == nftNewRule):
		n.poke(true)
	case (ev.table == "filter" || ev.table == "nat") &&
		(ev.kind == nftNewChain || ev.kind == nftNewRule || ev.kind == nftDelRule):
		// iptables-nft keeps its tables under these names. A changed chain policy arrives as a new
		// chain.
		n.poke(true)
	}
}

// pass is one pass of Run's loop. A full pass compares the rules even if no change was reported.
func (n *Network) pass(ctx context.Context, full bool) error {
	if full {
		n.mu.Lock()
		n.rulesChanged = true
		n.mu.Unlock()
	}
	return n.reconcile(ctx)
}

// reconcile applies the wanted state once. If one part fails the others are still applied.
func (n *Network) reconcile(ctx context.Context) error {
	n.mu.Lock()
	nodes, known, checkRules := n.nodes, n.known, n.rulesChanged
	self := nodes.Self
	n.rulesChanged = false
	n.mu.Unlock()

	var errs []error
	if checkRules {
		err := errors.Join(n.ensureSettings(ctx), n.ensureRules(ctx))
		if err != nil {
			n.mu.Lock()
			n.rulesChanged = true
			n.mu.Unlock()
			errs = append(errs, err)
		}
	}
	errs = append(errs, n.watchOverlaps())
	links, err := readHostLinks()
	if err != nil {
		errs = append(errs, err)
	}
	if err == nil {
		errs = append(errs, ensureServiceRoutes(n.cfg.Bridge, n.cfg.Cluster.ServiceCIDRs, links))
	}
	if known && len(self.PodCIDRs) > 0 {
		mtu := podMTU(n.cfg.MTU, links.mtu, n.cfg.Cluster.NetworkBackend, firstAddr(self.Addrs))
		errs = append(errs, remember(n.cfg.StateDir, nodes), n.ensurePeers(ctx, self, nodes.Peers, mtu),
			n.ensureConflist(self, mtu), n.ensureBridgeMTU(mtu), n.forgetLeases(self))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	listed, err := fileExists(n.conflistPath())
	if err == nil && listed {
		n.readyOnce.Do(func() { close(n.ready) })
	}
	return err
}

func fileExists(path string) (bool, error) {
	switch _, err := os.Stat(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for %s: %w", path, err)
	}
}

func firstAddr(addrs []netip.Addr) netip.Addr {
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	return addrs[0]
}

func (n *Network) conflistPath() string { return filepath.Join(n.cfg.ConfDir, ConflistName) }

func (n *Network) ensureSettings(ctx context.Context) error {
	return ensureKernelSettings(ctx, n.cfg.Cluster.HasIPv4(), n.cfg.Cluster.HasIPv6())
}

// ensureRules writes the node's rules if they differ from the wanted ones.
func (n *Network) ensureRules(ctx context.Context) error {
	rules := Rules{Bridge: n.cfg.Bridge, ClusterCIDRs: n.cfg.Cluster.ClusterCIDRs,
		LocalServiceIPs: n.cfg.LocalServiceIPs}
	var errs []error
	for _, fw := range n.firewalls {
		intact, err := fw.Intact(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if intact {
			continue
		}
		if err := fw.Apply(ctx, rules); err != nil {
			errs = append(errs, err)
			continue
		}
		n.log.Debug("wrote packet filter rules", zap.String("with", fmt.Sprintf("%T", fw)))
	}
	return errors.Join(errs...)
}

func (n *Network) ensureConflist(self Node, mtu int) error {
	bandwidth := false
	if n.cfg.BinDir != "" {
		var err error
		if bandwidth, err = fileExists(filepath.Join(n.cfg.BinDir, "bandwidth")); err != nil {
			return err
		}
	}
	text, err := renderConflist(conflistSpec{
		bridge:    n.cfg.Bridge,
		podCIDRs:  self.PodCIDRs,
		mtu:       mtu,
		leaseDir:  leaseRoot(n.cfg.StateDir),
		firewall:  n.cfg.Firewall,
		bandwidth: bandwidth,
	})
	if err != nil {
		return err
	}
	changed, err := writeFile(n.conflistPath(), text)
	if changed {
		n.log.Info("wrote pod network list", zap.Stringers("pod_cidrs", self.PodCIDRs), zap.Int("mtu", mtu))
	}
	return err
}

// ensureBridgeMTU applies a changed MTU to an existing bridge. New pods get theirs from the network
// list; for older pods the bridge answers packets that are too large with the MTU that fits.
func (n *Network) ensureBridgeMTU(mtu int) error {
	link, err := netlink.LinkByName(n.cfg.Bridge)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.cfg.Bridge, err)
	}
	if link.Attrs().MTU == mtu {
		return nil
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of bridge %s to %d: %w", n.cfg.Bridge, mtu, err)
	}
	return nil
}
