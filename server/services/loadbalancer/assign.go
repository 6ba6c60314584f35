package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mote-dev/mote/internal/hostports"
)

// Class is the loadBalancerClass that mote serves, beside services that name none.
const Class = "mote.dev/load-balancer"

// Labels that k3s' load balancer reads, too.
const (
	// enableLabel on a node limits load balancers to the nodes where it is "true".
	enableLabel = "svccontroller.k3s.cattle.io/enablelb"
	// poolLabel on a service limits it to nodes with the same value.
	poolLabel = "svccontroller.k3s.cattle.io/lbpool"
)

// state is what the assignment depends on.
type state struct {
	services []*corev1.Service
	nodes    []*corev1.Node
	// pods are those with host ports.
	pods []*corev1.Pod
	// endpoints are the nodes with ready endpoints of a service.
	endpoints func(*corev1.Service) map[string]bool
}

// assignment is what a service gets.
type assignment struct {
	service *corev1.Service
	// addresses are in the order of the service's families, and of the nodes' names.
	addresses []netip.Addr
	// refused says what is wrong, on which nodes, and what to do; empty if nothing is.
	refused string
}

// socket is one port of one address.
type socket struct {
	address  netip.Addr
	port     uint16
	protocol corev1.Protocol
}

// candidate is a node that may serve load balancers.
type candidate struct {
	*corev1.Node
	addresses []netip.Addr
	listeners []hostports.Listener
	// hostPorts are those of pods on the node, with the pods' names.
	hostPorts map[socket]string
}

// ours reports whether mote gives the service its addresses.
func ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == Class)
}

// assign gives each service the addresses of the nodes that can serve all of its ports. Of two
// services that want one port of one address, the one that has it keeps it, else the older one gets
// it.
func assign(s state) []assignment {
	var wanted []*corev1.Service
	for _, each := range s.services {
		if ours(each) {
			wanted = append(wanted, each)
		}
	}
	slices.SortFunc(wanted, func(a, b *corev1.Service) int {
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name))
	})
	nodes, reserved := candidates(s), reserved(s.services)
	taken := map[socket]*corev1.Service{}
	out := make([]assignment, 0, len(wanted))
	for _, service := range wanted {
		a := assignment{service: service}
		eligible, why := eligible(service, nodes, s.endpoints)
		if why != "" {
			a.refused = why
			out = append(out, a)
			continue
		}
		conflicts := conflicts{service: service, reserved: reserved, taken: taken}
		for _, family := range service.Spec.IPFamilies {
			a.addresses = append(a.addresses, conflicts.free(eligible, family == corev1.IPv6Protocol)...)
		}
		a.refused = conflicts.message(len(a.addresses) == 0)
		for _, address := range a.addresses {
			for _, p := range service.Spec.Ports {
				taken[socket{address, uint16(p.Port), p.Protocol}] = service
			}
		}
		out = append(out, a)
	}
	return out
}

// rank puts services that have all their ports already before those that do not.
func rank(s *corev1.Service) int {
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return 1
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if len(i.Ports) != len(s.Spec.Ports) {
			return 1
		}
		for n, p := range s.Spec.Ports {
			if i.Ports[n].Port != p.Port || i.Ports[n].Protocol != p.Protocol {
				return 1
			}
		}
	}
	return 0
}

// candidates are the nodes that may serve load balancers, by name.
func candidates(s state) []candidate {
	hostPorts := map[string]map[socket]string{}
	for _, p := range s.pods {
		if hostPorts[p.Spec.NodeName] == nil {
			hostPorts[p.Spec.NodeName] = map[socket]string{}
		}
		addHostPorts(hostPorts[p.Spec.NodeName], p)
	}
	external := slices.ContainsFunc(s.nodes, func(n *corev1.Node) bool {
		return serves(n) && len(addresses(n, corev1.NodeExternalIP)) > 0
	})
	kind := corev1.NodeInternalIP
	if external {
		kind = corev1.NodeExternalIP
	}
	limited := slices.ContainsFunc(s.nodes, func(n *corev1.Node) bool { return n.Labels[enableLabel] == "true" })
	owners := owners(s.nodes, kind)
	var out []candidate
	for _, n := range s.nodes {
		if !serves(n) || limited && n.Labels[enableLabel] != "true" {
			continue
		}
		// A node whose report cannot be read is one that does not report.
		listeners, err := hostports.Parse(n.Annotations[hostports.Annotation])
		if err != nil {
			continue
		}
		out = append(out, candidate{
			Node:      n,
			addresses: only(addresses(n, kind), func(a netip.Addr) bool { return owners[a] == n }),
			listeners: listeners,
			hostPorts: hostPorts[n.Name],
		})
	}
	slices.SortFunc(out, func(a, b candidate) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// serves reports whether the node is ready and nobody has excluded it.
func serves(n *corev1.Node) bool {
	if _, excluded := n.Labels[corev1.LabelNodeExcludeBalancers]; excluded || n.DeletionTimestamp != nil {
		return false
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// addresses are the node's of one kind, as far as they can be those of one machine: all nodes send
// what is for them to the service's pods.
func addresses(n *corev1.Node, kind corev1.NodeAddressType) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		ip = ip.Unmap()
		if err == nil && a.Type == kind && ip.Zone() == "" && ip.IsGlobalUnicast() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// owners returns the node that has an address: of several that claim it the oldest. Another one
// knows nothing of the ports that are in use there.
func owners(nodes []*corev1.Node, kind corev1.NodeAddressType) map[netip.Addr]*corev1.Node {
	out := map[netip.Addr]*corev1.Node{}
	for _, n := range nodes {
		for _, a := range addresses(n, kind) {
			old := out[a]
			if old == nil || cmp.Or(n.CreationTimestamp.Compare(old.CreationTimestamp.Time),
				strings.Compare(n.Name, old.Name)) < 0 {
				out[a] = n
			}
		}
	}
	return out
}

// addHostPorts adds what a pod takes of its node's addresses. An address of a socket that is not
// valid means all.
func addHostPorts(into map[socket]string, p *corev1.Pod) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.HostNetwork {
		return // a pod on the host's network is among the host's listeners
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			protocol := cmp.Or(port.Protocol, corev1.ProtocolTCP)
			address, err := netip.ParseAddr(port.HostIP)
			if err != nil || address.IsUnspecified() {
				address = netip.Addr{}
			}
			into[socket{address, uint16(port.HostPort), protocol}] = p.Namespace + "/" + p.Name
		}
	}
}

// reservation is a port that a service has already, whatever its load balancer gets.
type reservation struct {
	service *corev1.Service
	what    string
}

// reserved are the services' node ports and external IPs. The address of a node port's socket is
// not valid: it is open at all.
func reserved(services []*corev1.Service) map[socket]reservation {
	out := map[socket]reservation{}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				out[socket{port: uint16(p.NodePort), protocol: p.Protocol}] = reservation{s, "the node port"}
			}
			for _, text := range s.Spec.ExternalIPs {
				if ip, err := netip.ParseAddr(text); err == nil {
					out[socket{ip, uint16(p.Port), p.Protocol}] = reservation{s, "an external IP"}
				}
			}
		}
	}
	return out
}

// eligible are the nodes that the service's own fields allow, or why there are none.
func eligible(s *corev1.Service, nodes []candidate, endpoints func(*corev1.Service) map[string]bool) (
	[]candidate, string,
) {
	if len(nodes) == 0 {
		return nil, "no node serves load balancers: none is ready, or labels exclude all of them, " +
			"or they run with --disable load-balancer"
	}
	if pool := s.Labels[poolLabel]; pool != "" {
		nodes = only(nodes, func(n candidate) bool { return n.Labels[poolLabel] == pool })
		if len(nodes) == 0 {
			return nil, fmt.Sprintf("no node serves pool %q: label one with %s=%s", pool, poolLabel, pool)
		}
	}
	if text := s.Spec.LoadBalancerIP; text != "" {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Sprintf("loadBalancerIP %q is no address: set one of a node's, or none", text)
		}
		have := nodes
		nodes = nil
		for _, n := range have {
			if slices.Contains(n.addresses, ip) {
				n.addresses = []netip.Addr{ip}
				nodes = append(nodes, n)
			}
		}
		if len(nodes) == 0 {
			return nil, fmt.Sprintf("loadBalancerIP %s is no address of a node that serves load balancers: "+
				"set one of %s, or none", ip, list(have))
		}
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		// Other nodes drop its traffic. Without any endpoint the addresses stay, so that they do
		// not change while the pods are replaced.
		if with := endpoints(s); len(with) > 0 {
			if near := only(nodes, func(n candidate) bool { return with[n.Name] }); len(near) > 0 {
				nodes = near
			}
		}
	}
	return nodes, ""
}

// only returns those that are wanted, and leaves the others in place.
func only[T any](all []T, want func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(each T) bool { return !want(each) })
}

// list writes the nodes' addresses for a message, a few of them.
func list(nodes []candidate) string {
	var all []string
	for _, n := range nodes {
		for _, a := range n.addresses {
			all = append(all, a.String())
		}
	}
	return few(all)
}

// few joins the first of many texts.
func few(texts []string) string {
	const shown = 4
	if len(texts) > shown {
		return strings.Join(texts[:shown], ", ") + fmt.Sprintf(" and %d more", len(texts)-shown)
	}
	return strings.Join(texts, ", ")
}

// conflicts finds which addresses a service cannot have because a port is in use.
type conflicts struct {
	service  *corev1.Service
	reserved map[socket]reservation
	taken    map[socket]*corev1.Service
	found    []string
}

// free returns the addresses of one family at which nothing has any of the service's ports.
func (c *conflicts) free(nodes []candidate, six bool) []netip.Addr {
	var out []netip.Addr
	for _, n := range nodes {
		for _, a := range n.addresses {
			if a.Is6() != six {
				continue
			}
			if who := c.user(n, a); who != "" {
				c.found = append(c.found, who)
				continue
			}
			out = append(out, a)
		}
	}
	return out
}

// user says which port of an address is in use, and by what; empty if none is.
func (c *conflicts) user(n candidate, address netip.Addr) string {
	for _, p := range c.service.Spec.Ports {
		port := uint16(p.Port)
		if who := c.userOf(n, address, port, p.Protocol); who != "" {
			return fmt.Sprintf("port %d/%s of node %s (%s) is in use by %s", port, p.Protocol, n.Name, address, who)
		}
	}
	return ""
}

func (c *conflicts) userOf(n candidate, address netip.Addr, port uint16, protocol corev1.Protocol) string {
	here, all := socket{address, port, protocol}, socket{port: port, protocol: protocol}
	if other := c.taken[here]; other != nil {
		return "service " + key(other).String()
	}
	for _, s := range []socket{here, all} {
		if r, ok := c.reserved[s]; ok && r.service.UID != c.service.UID {
			return r.what + " of service " + key(r.service).String()
		}
		if pod, ok := n.hostPorts[s]; ok {
			return "the host port of pod " + pod
		}
	}
	if l, ok := hostports.Find(n.listeners, address, port, protocol); ok {
		return cmp.Or(l.Owner, "a program of the host")
	}
	return ""
}

// message says what was found, and what to do.
func (c *conflicts) message(all bool) string {
	switch {
	case len(c.found) > 0 && all:
		return "no address: " + few(c.found) + "; change the service's port, or stop what uses it"
	case len(c.found) > 0:
		return "left out: " + few(c.found)
	case all:
		return fmt.Sprintf("no address: no node that serves load balancers has one of the service's families (%s)",
			strings.Trim(fmt.Sprint(c.service.Spec.IPFamilies), "[]"))
	}
	return ""
}

func key(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}
