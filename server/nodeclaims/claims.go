package nodeclaims

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	api "k8s.io/kubernetes/pkg/apis/core"
)

const (
	// outsideAnnotation is netproxy's: where other nodes send the packets of the pod network.
	outsideAnnotation = "mote.dev/outside-ip"
	// domain is that of labels which are no node's to set, as are those of
	// node-restriction.kubernetes.io.
	domain = "mote.dev"
	// balancers is the domain of k3s' labels that choose the nodes of load balancers.
	balancers = "svccontroller.k3s.cattle.io"
)

// checkNode refuses what a node must not say in its own Node. Only what it changes counts: what was
// let in before does not keep the node from reporting that it lives.
func (p *plugin) checkNode(name string, is, was *api.Node) error {
	if !slices.Equal(is.Spec.PodCIDRs, was.Spec.PodCIDRs) {
		return errors.New(
			"a node must not set spec.podCIDR or spec.podCIDRs: the servers give each node its range; leave them out")
	}
	if was.Spec.Unschedulable && !is.Spec.Unschedulable {
		return fmt.Errorf("a node must not make itself schedulable again: `kubectl uncordon %s` as an administrator",
			name)
	}
	for _, key := range slices.Sorted(maps.Keys(is.Labels)) {
		if value, ok := was.Labels[key]; reserved(key) && (!ok || value != is.Labels[key]) {
			return fmt.Errorf("a node must not set its label %s: use `kubectl label node` as an administrator", key)
		}
	}
	for key := range was.Labels {
		if _, ok := is.Labels[key]; reserved(key) && !ok {
			return fmt.Errorf("a node must not remove its label %s: use `kubectl label node` as an administrator", key)
		}
	}
	if outside := is.Annotations[outsideAnnotation]; outside != "" && outside != was.Annotations[outsideAnnotation] {
		// It may be a server's as well: that of the NAT both are behind.
		if _, err := p.checkMachine(outside); err != nil {
			return fmt.Errorf("annotation %s: %w", outsideAnnotation, err)
		}
	}
	for _, a := range is.Status.Addresses {
		if slices.Contains(was.Status.Addresses, a) {
			continue
		}
		if err := p.checkAddress(name, a); err != nil {
			return fmt.Errorf("status.addresses, %s: %w", a.Type, err)
		}
	}
	return nil
}

// reserved reports whether a label is of mote.dev or a name below it, or chooses the nodes of load
// balancers: a node that set that on itself would become the only one.
func reserved(label string) bool {
	of, _, ok := strings.Cut(label, "/")
	return ok && (of == domain || strings.HasSuffix(of, "."+domain) || of == balancers)
}

// checkAddress refuses an address that leads elsewhere than to the node.
func (p *plugin) checkAddress(name string, a api.NodeAddress) error {
	switch a.Type {
	case api.NodeInternalIP, api.NodeExternalIP:
		ip, err := p.checkMachine(a.Address)
		if err != nil {
			return err
		}
		return p.checkServers(name, ip)
	case api.NodeHostName, api.NodeInternalDNS, api.NodeExternalDNS:
		// The API server dials the kubelet by this name.
		if strings.EqualFold(a.Address, name) {
			return nil
		}
		return fmt.Errorf("%q is not the node's name, %s", a.Address, name)
	}
	// One of another type could be dialled in place of the node's name.
	return errors.New("a node must not have addresses of this type")
}

// checkMachine refuses what cannot be the address of a node's machine.
func (p *plugin) checkMachine(text string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return ip, fmt.Errorf("%q is not an IP address", text)
	}
	ip = ip.Unmap()
	if !ip.IsGlobalUnicast() {
		return ip, fmt.Errorf("%s is not the address of one machine", ip)
	}
	for _, of := range []struct {
		what   string
		ranges []netip.Prefix
	}{{"services", p.config.ServiceCIDRs}, {"pods", p.config.ClusterCIDRs}} {
		if within(ip, of.ranges) {
			return ip, fmt.Errorf("%s is in the range of the cluster's %s: give the machine another address",
				ip, of.what)
		}
	}
	return ip, nil
}

// checkServers refuses an API server's address, but for the node beside it.
func (p *plugin) checkServers(name string, ip netip.Addr) error {
	if name == p.config.Local || dummy(ip) {
		return nil
	}
	servers, err := p.servers()
	if err != nil {
		return err
	}
	if slices.Contains(servers, ip) {
		return fmt.Errorf(
			"%s is the address of an API server: give the machine another one, and name it with --node-ip", ip)
	}
	return nil
}

// checkPod refuses addresses that cannot be those of a pod on the node: services and network
// policies act on them. Only what is new counts.
func (p *plugin) checkPod(name string, is, was *api.Pod) error {
	own, err := p.nodes.Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("look at node %s: %w", name, err)
	}
	others, err := p.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, podIP := range is.Status.PodIPs {
		if slices.Contains(was.Status.PodIPs, podIP) {
			continue
		}
		check := p.checkPodIP
		if is.Spec.HostNetwork {
			check = p.checkHostIP
		}
		if err := check(own, others, name, podIP.IP); err != nil {
			return fmt.Errorf("status.podIPs: %w", err)
		}
	}
	had := hostIPs(was)
	for _, hostIP := range hostIPs(is) {
		if slices.Contains(had, hostIP) {
			continue
		}
		if err := p.checkHostIP(own, others, name, hostIP); err != nil {
			return fmt.Errorf("status.hostIPs: %w", err)
		}
	}
	return nil
}

// hostIPs are what a pod's status says of its machine.
func hostIPs(pod *api.Pod) []string {
	var all []string
	if pod.Status.HostIP != "" {
		all = append(all, pod.Status.HostIP)
	}
	for _, h := range pod.Status.HostIPs {
		all = append(all, h.IP)
	}
	return all
}

// checkPodIP refuses an address that a pod with a network of its own cannot have on the node.
func (p *plugin) checkPodIP(own *corev1.Node, others []*corev1.Node, name, text string) error {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("%q is not an IP address", text)
	}
	ip = ip.Unmap()
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("%s is not the address of a pod", ip)
	}
	if within(ip, p.config.ServiceCIDRs) {
		return fmt.Errorf("%s is in the range of the cluster's services", ip)
	}
	if !within(ip, p.config.ClusterCIDRs) {
		return p.checkForeign(own, others, name, ip)
	}
	if !p.config.PodsInRanges {
		return nil
	}
	if own != nil && len(own.Spec.PodCIDRs) > 0 {
		if within(ip, ranges(own)) {
			return nil
		}
		return fmt.Errorf("%s is not in the range of node %s, %s", ip, name, strings.Join(own.Spec.PodCIDRs, ", "))
	}
	for _, other := range others {
		if other.Name != name && within(ip, ranges(other)) {
			return fmt.Errorf("%s is in the range of node %s", ip, other.Name)
		}
	}
	return nil
}

// checkHostIP refuses an address that the node's machine cannot have, unless its Node has it.
func (p *plugin) checkHostIP(own *corev1.Node, others []*corev1.Node, name, text string) error {
	ip, err := p.checkMachine(text)
	if own != nil && hasAddress(own, ip) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.checkForeign(own, others, name, ip)
}

// checkForeign refuses the address of a server or of another node.
func (p *plugin) checkForeign(own *corev1.Node, others []*corev1.Node, name string, ip netip.Addr) error {
	if own != nil && hasAddress(own, ip) || dummy(ip) {
		return nil
	}
	for _, other := range others {
		if other.Name != name && hasAddress(other, ip) {
			return fmt.Errorf("%s is the address of node %s", ip, other.Name)
		}
	}
	return p.checkServers(name, ip)
}

func ranges(node *corev1.Node) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range node.Spec.PodCIDRs {
		if r, err := netip.ParsePrefix(text); err == nil {
			all = append(all, r.Masked())
		}
	}
	return all
}

func hasAddress(node *corev1.Node, ip netip.Addr) bool {
	return slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool {
		have, err := netip.ParseAddr(a.Address)
		return err == nil && have.Unmap() == ip
	})
}
