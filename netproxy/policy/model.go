package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
)

// Pod is what rules need to know about a pod.
type Pod struct {
	Namespace, Name string
	Labels          map[string]string
	IPs             []netip.Addr
	// Ports are the named ports.
	Ports []Port
	// Local is set for pods on this node. Only for them policies are enforced here.
	Local bool
	// Leaving is set for pods that are being deleted. Their addresses may already belong to other
	// pods.
	Leaving bool
}

// Port is a named port of a pod.
type Port struct {
	Name     string
	Protocol corev1.Protocol
	Number   int32
}

// State is everything rules depend on.
type State struct {
	Pods []Pod
	// Namespaces are the labels of each namespace.
	Namespaces map[string]map[string]string
	Policies   []*networking.NetworkPolicy
}

// podFrom converts a Pod; ok is false for pods that have no network of their own, or no longer have
// it.
func podFrom(p *corev1.Pod, node string) (out Pod, ok bool) {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return Pod{}, false
	}
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, each := range ips {
		if ip, err := netip.ParseAddr(each.IP); err == nil {
			out.IPs = append(out.IPs, ip.Unmap())
		}
	}
	if len(out.IPs) == 0 {
		return Pod{}, false
	}
	out.Namespace, out.Name, out.Labels, out.Local = p.Namespace, p.Name, p.Labels, p.Spec.NodeName == node
	out.Leaving = p.DeletionTimestamp != nil
	// Sidecars are init containers and can have named ports as well.
	for _, c := range append(slices.Clone(p.Spec.Containers), p.Spec.InitContainers...) {
		for _, port := range c.Ports {
			if port.Name != "" {
				out.Ports = append(out.Ports,
					Port{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP), port.ContainerPort})
			}
		}
	}
	return out, true
}

// sortPods sorts pods by name, leaving ones last, so that equal states render equally.
func sortPods(pods []Pod) {
	rank := func(p Pod) int {
		if p.Leaving {
			return 1
		}
		return 0
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
}
