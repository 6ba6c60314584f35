package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-dev/mote/internal/joinapi"
)

// ErrAmbiguous means that several nodes have an address.
var ErrAmbiguous = errors.New("several nodes have this address")

// kubeletPort is the kubelet's port until its node reports another.
const kubeletPort = 10250

// node is the part of a Node object that says how to reach it.
type node struct {
	since     time.Time    // when its object was made
	addresses []netip.Addr // internal ones first
	port      string       // of its kubelet
	cidrs     []netip.Prefix
}

// nodes is an index that finds the node behind an address.
type nodes struct {
	mu      sync.RWMutex // guards what follows
	byName  map[string]node
	byIP    map[netip.Addr][]string
	byRange map[netip.Prefix][]string
	// lengths counts byRange's prefixes by their length.
	lengths map[int]int
	// within are the ranges that nodes' may lie in; none means any.
	within []netip.Prefix
	// deleted is called with the name of a node that was deleted, without mu.
	deleted func(name string)
}

var _ cache.ResourceEventHandler = (*nodes)(nil)

func newNodes(deleted func(name string)) *nodes {
	return &nodes{
		byName:  map[string]node{},
		byIP:    map[netip.Addr][]string{},
		byRange: map[netip.Prefix][]string{},
		lengths: map[int]int{},
		deleted: deleted,
	}
}

// OnAdd implements cache.ResourceEventHandler.
func (n *nodes) OnAdd(obj any, _ bool) { n.set(obj) }

// OnUpdate implements cache.ResourceEventHandler.
func (n *nodes) OnUpdate(_, obj any) { n.set(obj) }

// OnDelete implements cache.ResourceEventHandler.
func (n *nodes) OnDelete(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	if o, ok := obj.(*corev1.Node); ok {
		n.mu.Lock()
		n.remove(o.Name)
		n.mu.Unlock()
		n.deleted(o.Name)
	}
}

// has reports whether there is a node of this name.
func (n *nodes) has(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	_, ok := n.byName[name]
	return ok
}

func (n *nodes) set(obj any) {
	o, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	is := read(o)
	n.mu.RLock()
	was, known := n.byName[o.Name]
	n.mu.RUnlock()
	// Most changes of a node are its heartbeats.
	if known && was.since.Equal(is.since) && slices.Equal(was.addresses, is.addresses) && was.port == is.port &&
		slices.Equal(was.cidrs, is.cidrs) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remove(o.Name)
	n.byName[o.Name] = is
	for _, ip := range is.addresses {
		n.byIP[ip] = append(n.byIP[ip], o.Name)
	}
	for _, r := range is.cidrs {
		// A deletion that the watch missed arrives after the node that has the range next.
		if len(n.byRange[r]) == 0 {
			n.lengths[r.Bits()]++
		}
		n.byRange[r] = append(n.byRange[r], o.Name)
	}
}

// remove forgets a node. The caller holds mu.
func (n *nodes) remove(name string) {
	was := n.byName[name]
	delete(n.byName, name)
	for _, ip := range was.addresses {
		n.byIP[ip] = slices.DeleteFunc(n.byIP[ip], func(other string) bool { return other == name })
		if len(n.byIP[ip]) == 0 {
			delete(n.byIP, ip)
		}
	}
	for _, r := range was.cidrs {
		n.byRange[r] = slices.DeleteFunc(n.byRange[r], func(other string) bool { return other == name })
		if len(n.byRange[r]) > 0 {
			continue
		}
		delete(n.byRange, r)
		if n.lengths[r.Bits()]--; n.lengths[r.Bits()] == 0 {
			delete(n.lengths, r.Bits())
		}
	}
}

// read extracts a node from its object.
func read(o *corev1.Node) node {
	is := node{since: o.CreationTimestamp.Time, port: strconv.Itoa(kubeletPort)}
	if p := o.Status.DaemonEndpoints.KubeletEndpoint.Port; p > 0 {
		is.port = strconv.Itoa(int(p))
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range o.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind &&
				!slices.Contains(is.addresses, ip.Unmap()) {
				is.addresses = append(is.addresses, ip.Unmap())
			}
		}
	}
	ranges := o.Spec.PodCIDRs
	if len(ranges) == 0 && o.Spec.PodCIDR != "" {
		ranges = []string{o.Spec.PodCIDR}
	}
	for _, text := range ranges {
		if r, err := netip.ParsePrefix(text); err == nil {
			is.cidrs = append(is.cidrs, r.Masked())
		}
	}
	return is
}

// way is how an address is reached.
type way struct {
	// node and target are set if it leads through the node's tunnel.
	node, target string
	// address is what to dial where there is no tunnel.
	address string
}

// find says how an address is reached.
func (n *nodes) find(address string) (way, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return way{}, fmt.Errorf("dial %q: %w", address, err)
	}
	direct := way{address: address}
	n.mu.RLock()
	defer n.mu.RUnlock()
	// What is an address stands for it, although a node may have it for a name.
	if ip, err := netip.ParseAddr(host); err == nil {
		if way, known, err := n.findIP(ip.Unmap(), port, direct); known || err != nil {
			return way, err
		}
	}
	if is, ok := n.byName[strings.ToLower(host)]; ok {
		if len(is.addresses) > 0 {
			// The machine's resolver may know the name as something else, or not at all.
			direct.address = net.JoinHostPort(is.addresses[0].String(), port)
		}
		if port == is.port {
			direct.node, direct.target = strings.ToLower(host), joinapi.TunnelKubelet
		}
		return direct, nil
	}
	return direct, nil
}

// findIP says how an IP address is reached that is a node's or a pod's. The caller holds mu.
func (n *nodes) findIP(ip netip.Addr, port string, direct way) (_ way, known bool, err error) {
	// A pod's address first: a node might say that it has it.
	if owner := n.rangeOwner(ip); owner != "" {
		direct.node, direct.target = owner, net.JoinHostPort(ip.String(), port)
		return direct, true, nil
	}
	var owners []string
	for _, name := range n.byIP[ip] {
		if n.byName[name].port == port {
			owners = append(owners, name)
		}
	}
	switch {
	case len(owners) > 1:
		return way{}, true, fmt.Errorf("dial %s: %w: %s: reach them by name", direct.address, ErrAmbiguous,
			strings.Join(owners, ", "))
	case len(owners) == 1 && owners[0] == n.oldest(n.byIP[ip]):
		// A node chooses its kubelet's port itself: one that came later and says it has the address
		// of an older one, and that one's port of something else, is not believed.
		direct.node, direct.target = owners[0], joinapi.TunnelKubelet
	}
	return direct, len(n.byIP[ip]) > 0, nil
}

// rangeOwner is the node in whose range of pods an address is, or "". The caller holds mu.
func (n *nodes) rangeOwner(ip netip.Addr) string {
	if len(n.within) > 0 && !slices.ContainsFunc(n.within, func(r netip.Prefix) bool { return r.Contains(ip) }) {
		return ""
	}
	var claimants []string
	for bits := range n.lengths {
		// The length may be one of the other family's.
		if r, err := ip.Prefix(bits); err == nil {
			claimants = append(claimants, n.byRange[r]...)
		}
	}
	if len(claimants) == 0 {
		return ""
	}
	return n.oldest(claimants)
}

// oldest is the node that was made first, which is believed where several claim the same. The
// caller holds mu.
func (n *nodes) oldest(names []string) string {
	return slices.MinFunc(names, func(a, b string) int {
		return cmp.Or(n.byName[a].since.Compare(n.byName[b].since), strings.Compare(a, b))
	})
}

// host returns the address only this node has, or "".
func (n *nodes) host(name string) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, ip := range n.byName[name].addresses {
		if len(n.byIP[ip]) == 1 {
			return ip.String()
		}
	}
	return ""
}
