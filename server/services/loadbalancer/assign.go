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
	nodes, nodePorts := candidates(s), nodePorts(s.services)
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
		conflicts := conflicts{service: service, nodePorts: nodePorts, taken: taken}
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
			addresses: addresses(n, kind),
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

// addresses are the node's of one kind.
func addresses(n *corev1.Node, kind corev1.NodeAddressType) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && !slices.Contains(out, ip) {
			out = append(out, ip)
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

// nodePorts are the services that own node ports. The address of these sockets is not valid: they
// are open at all.
func nodePorts(services []*corev1.Service) map[socket]*corev1.Service {
	out := map[socket]*corev1.Service{}
	for _, s := range services {
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				out[socket{port: uint16(p.NodePort), protocol: p.Protocol}] = s
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

func only(nodes []candidate, want func(candidate) bool) []candidate {
	return slices.DeleteFunc(slices.Clone(nodes), func(n candidate) bool { return !want(n) })
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
	service   *corev1.Service
	nodePorts map[socket]*corev1.Service
	taken     map[socket]*corev1.Service
	found     []string
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
		what := fmt.Sprintf("port %d/%s of node %s (%s) is in use by ", port, p.Protocol, n.Name, address)
		if other := c.taken[socket{address, port, p.Protocol}]; other != nil {
			return what + "service " + key(other).String()
		}
		if other := c.nodePorts[socket{port: port, protocol: p.Protocol}]; other != nil && other.UID != c.service.UID {
			return what + "the node port of service " + key(other).String()
		}
		for _, s := range []socket{{address, port, p.Protocol}, {port: port, protocol: p.Protocol}} {
			if pod, ok := n.hostPorts[s]; ok {
				return what + "the host port of pod " + pod
			}
		}
		if l, ok := hostports.Find(n.listeners, address, port, p.Protocol); ok {
			return what + cmp.Or(l.Owner, "a program of the host")
		}
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
