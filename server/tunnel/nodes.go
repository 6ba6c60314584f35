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
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return direct, nil
	}
	ip = ip.Unmap()
	var owners []string
	for _, name := range n.byIP[ip] {
		if n.byName[name].port == port {
			owners = append(owners, name)
		}
	}
	switch {
	case len(owners) > 1:
		return way{}, fmt.Errorf("dial %s: %w: %s: reach them by name", address, ErrAmbiguous,
			strings.Join(owners, ", "))
	case len(owners) == 1 && owners[0] == n.oldest(ip):
		// A node chooses its kubelet's port itself: one that came later and says it has the address
		// of an older one, and that one's port of something else, is not believed.
		direct.node, direct.target = owners[0], joinapi.TunnelKubelet
		return direct, nil
	case len(n.byIP[ip]) > 0:
		return direct, nil
	}
	for bits := range n.lengths {
		r, err := ip.Prefix(bits)
		if err != nil {
			// The length is one of the other family's.
			continue
		}
		if names := n.byRange[r]; len(names) > 0 {
			// Of several, the one that came last: the others are about to be deleted.
			direct.node, direct.target = names[len(names)-1], net.JoinHostPort(ip.String(), port)
			return direct, nil
		}
	}
	return direct, nil
}

// oldest is the node that had an address first. The caller holds mu.
func (n *nodes) oldest(ip netip.Addr) string {
	return slices.MinFunc(n.byIP[ip], func(a, b string) int {
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
