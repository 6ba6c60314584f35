package loadbalancer

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mote-dev/mote/internal/hostports"
)

// node makes a ready node with addresses, separated by spaces, that reports listeners.
func node(t *testing.T, name, address string, listeners ...hostports.Listener) *corev1.Node {
	t.Helper()
	text, err := hostports.Format(listeners)
	if err != nil {
		t.Fatal(err)
	}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:        name,
		Labels:      map[string]string{},
		Annotations: map[string]string{hostports.Annotation: text},
	}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, a := range strings.Fields(address) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

var made int

// balancer makes a service, younger than those made before.
func balancer(name string, ports ...corev1.ServicePort) *corev1.Service {
	made++
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			Namespace:         "default",
			UID:               types.UID(fmt.Sprint(name, made)),
			Labels:            map[string]string{},
			CreationTimestamp: metav1.Unix(int64(made), 0),
		},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeLoadBalancer,
			Ports:      ports,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
		},
	}
}

func tcp(port int32) corev1.ServicePort {
	return corev1.ServicePort{Port: port, Protocol: corev1.ProtocolTCP}
}

func udp(port int32) corev1.ServicePort {
	return corev1.ServicePort{Port: port, Protocol: corev1.ProtocolUDP}
}

func with(s *corev1.Service, change func(*corev1.Service)) *corev1.Service {
	change(s)
	return s
}

func TestAssign(t *testing.T) {
	sshd := hostports.Listener{Port: 22, Protocol: corev1.ProtocolTCP, Owner: "sshd"}
	a := func() *corev1.Node { return node(t, "a", "192.0.2.1 2001:db8::1", sshd) }
	b := func() *corev1.Node { return node(t, "b", "192.0.2.2 2001:db8::2") }
	changed := func(n *corev1.Node, change func(*corev1.Node)) *corev1.Node { change(n); return n }
	label := func(key, value string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Labels[key] = value }
	}
	pod := func(node string, port corev1.ContainerPort) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "gate", Namespace: "default"}, Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{port}}}}}
	}
	for _, row := range []struct {
		name string
		state
		addresses string // of the last service
		refused   string // a part of its event
	}{
		{
			name:      "addresses of all nodes",
			state:     state{nodes: []*corev1.Node{b(), a()}, services: []*corev1.Service{balancer("s", tcp(80))}},
			addresses: "192.0.2.1 192.0.2.2",
		},
		{
			name:    "no node",
			state:   state{services: []*corev1.Service{balancer("s", tcp(80))}},
			refused: "no node serves load balancers",
		},
		{
			name: "a node that is not ready",
			state: state{
				nodes: []*corev1.Node{a(), changed(b(),
					func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "a node that does not report its ports",
			state: state{
				nodes:    []*corev1.Node{a(), changed(b(), func(n *corev1.Node) { n.Annotations = nil })},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "a node that is excluded",
			state: state{
				nodes:    []*corev1.Node{a(), changed(b(), label(corev1.LabelNodeExcludeBalancers, ""))},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "nodes that are labelled for it, as in k3s",
			state: state{
				nodes:    []*corev1.Node{a(), changed(b(), label(enableLabel, "true"))},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.2",
		},
		{
			name: "a pool",
			state: state{
				nodes: []*corev1.Node{a(), changed(b(), label(poolLabel, "lan"))},
				services: []*corev1.Service{
					with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Labels[poolLabel] = "lan" })},
			},
			addresses: "192.0.2.2",
		},
		{
			name: "a pool without a node",
			state: state{
				nodes: []*corev1.Node{a()},
				services: []*corev1.Service{
					with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Labels[poolLabel] = "lan" })},
			},
			refused: `pool "lan": label one`,
		},
		{
			name: "external addresses if any node has one",
			state: state{
				nodes: []*corev1.Node{a(), changed(b(), func(n *corev1.Node) {
					n.Status.Addresses = append(n.Status.Addresses,
						corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "198.51.100.7"})
				})},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "198.51.100.7",
		},
		{
			name: "both families in the service's order",
			state: state{
				nodes: []*corev1.Node{a()},
				services: []*corev1.Service{with(balancer("s", tcp(80)), func(s *corev1.Service) {
					s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
				})},
			},
			addresses: "2001:db8::1 192.0.2.1",
		},
		{
			name: "a family that no node has",
			state: state{
				nodes: []*corev1.Node{node(t, "a", "192.0.2.1")},
				services: []*corev1.Service{with(balancer("s", tcp(80)), func(s *corev1.Service) {
					s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
				})},
			},
			refused: "families (IPv6)",
		},
		{
			name:      "a port of the host on one node",
			state:     state{nodes: []*corev1.Node{a(), b()}, services: []*corev1.Service{balancer("s", tcp(22))}},
			addresses: "192.0.2.2",
			refused:   "left out: port 22/TCP of node a (192.0.2.1) is in use by sshd",
		},
		{
			name:    "a port of the host on the only node",
			state:   state{nodes: []*corev1.Node{a()}, services: []*corev1.Service{balancer("s", tcp(80), tcp(22))}},
			refused: "no address: port 22/TCP of node a (192.0.2.1) is in use by sshd; change",
		},
		{
			name:      "the same number for another protocol",
			state:     state{nodes: []*corev1.Node{a()}, services: []*corev1.Service{balancer("s", udp(22))}},
			addresses: "192.0.2.1",
		},
		{
			name: "another service's port",
			state: state{
				nodes:    []*corev1.Node{a()},
				services: []*corev1.Service{balancer("first", tcp(80)), balancer("s", tcp(80))},
			},
			refused: "in use by service default/first",
		},
		{
			name: "several services on one address",
			state: state{
				nodes:    []*corev1.Node{a()},
				services: []*corev1.Service{balancer("first", tcp(80)), balancer("s", tcp(81), udp(80))},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "another service's node port",
			state: state{
				nodes: []*corev1.Node{a()},
				services: []*corev1.Service{
					{
						ObjectMeta: metav1.ObjectMeta{Name: "np", Namespace: "default", UID: "np"},
						Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{
							{Port: 1, NodePort: 30080, Protocol: corev1.ProtocolTCP}}},
					},
					balancer("s", tcp(30080)),
				},
			},
			refused: "the node port of service default/np",
		},
		{
			name: "another service's external IP",
			state: state{nodes: []*corev1.Node{a(), b()}, services: []*corev1.Service{
				with(balancer("other", tcp(80)), func(s *corev1.Service) {
					s.Spec.Type = corev1.ServiceTypeClusterIP
					s.Spec.ExternalIPs = []string{"192.0.2.1", "no address"}
				}), balancer("s", tcp(80))}},
			addresses: "192.0.2.2",
			refused:   "port 80/TCP of node a (192.0.2.1) is in use by an external IP of service default/other",
		},
		{
			name: "its own external IP",
			state: state{nodes: []*corev1.Node{a()}, services: []*corev1.Service{
				with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} })}},
			addresses: "192.0.2.1",
		},
		{
			// The younger one may be a rogue: it has none of the ports in use there.
			name: "an address that two nodes claim, with a port in use on the older one",
			state: state{nodes: []*corev1.Node{
				changed(node(t, "c", "192.0.2.1 192.0.2.3"), func(n *corev1.Node) {
					n.CreationTimestamp = metav1.Unix(2, 0)
				}),
				changed(a(), func(n *corev1.Node) { n.CreationTimestamp = metav1.Unix(1, 0) }),
			}, services: []*corev1.Service{balancer("s", tcp(22))}},
			addresses: "192.0.2.3",
			refused:   "port 22/TCP of node a (192.0.2.1) is in use by sshd",
		},
		{
			name: "an address of a node that is not ready, which another claims",
			state: state{nodes: []*corev1.Node{
				changed(a(), func(n *corev1.Node) { n.Status.Conditions = nil }),
				changed(node(t, "c", "192.0.2.1 192.0.2.3"), func(n *corev1.Node) {
					n.CreationTimestamp = metav1.Unix(2, 0)
				}),
			}, services: []*corev1.Service{balancer("s", tcp(80))}},
			addresses: "192.0.2.3",
		},
		{
			name: "addresses that are no machine's",
			state: state{nodes: []*corev1.Node{node(t, "a", "127.0.0.1 0.0.0.0 169.254.1.1 224.0.0.1 fe80::1 "+
				"2001:db8::1%eth0 ::ffff:192.0.2.1 192.0.2.1 nothing")},
				services: []*corev1.Service{with(balancer("s", tcp(80)), func(s *corev1.Service) {
					s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
				})}},
			addresses: "192.0.2.1",
		},
		{
			name: "its own node port",
			state: state{
				nodes: []*corev1.Node{a()},
				services: []*corev1.Service{balancer("s",
					corev1.ServicePort{Port: 30080, NodePort: 30080, Protocol: corev1.ProtocolTCP})},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "the host port of a pod",
			state: state{
				nodes:    []*corev1.Node{a(), b()},
				pods:     []*corev1.Pod{pod("a", corev1.ContainerPort{HostPort: 80})},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.2",
			refused:   "the host port of pod default/gate",
		},
		{
			name: "the host port of a pod on another address",
			state: state{
				nodes:    []*corev1.Node{a()},
				pods:     []*corev1.Pod{pod("a", corev1.ContainerPort{HostPort: 80, HostIP: "192.0.2.99"})},
				services: []*corev1.Service{balancer("s", tcp(80))},
			},
			addresses: "192.0.2.1",
		},
		{
			name: "an address that is asked for",
			state: state{
				nodes: []*corev1.Node{a(), b()},
				services: []*corev1.Service{
					with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.2" })},
			},
			addresses: "192.0.2.2",
		},
		{
			name: "an address that no node has",
			state: state{
				nodes: []*corev1.Node{a(), b()},
				services: []*corev1.Service{
					with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.77" })},
			},
			refused: "loadBalancerIP 192.0.2.77 is no address of a node",
		},
		{
			name: "an address that is none",
			state: state{
				nodes: []*corev1.Node{a()},
				services: []*corev1.Service{
					with(balancer("s", tcp(80)), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "router" })},
			},
			refused: `loadBalancerIP "router" is no address`,
		},
		{
			name: "local traffic only, where the endpoints are",
			state: state{
				nodes:     []*corev1.Node{a(), b()},
				endpoints: func(*corev1.Service) map[string]bool { return map[string]bool{"b": true} },
				services: []*corev1.Service{with(balancer("s", tcp(80)), func(s *corev1.Service) {
					s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
				})},
			},
			addresses: "192.0.2.2",
		},
		{
			name: "local traffic only, without any endpoint",
			state: state{
				nodes:     []*corev1.Node{a(), b()},
				endpoints: func(*corev1.Service) map[string]bool { return nil },
				services: []*corev1.Service{with(balancer("s", tcp(80)), func(s *corev1.Service) {
					s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
				})},
			},
			addresses: "192.0.2.1 192.0.2.2",
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := assign(row.state)
			if len(got) == 0 {
				t.Fatal("nothing is assigned")
			}
			last := got[len(got)-1]
			if texts := join(last.addresses); texts != row.addresses {
				t.Errorf("addresses %q, want %q", texts, row.addresses)
			}
			if !strings.Contains(last.refused, row.refused) || row.refused == "" && last.refused != "" {
				t.Errorf("event %q, want %q in it", last.refused, row.refused)
			}
		})
	}
}

func join(addresses []netip.Addr) string {
	var out []string
	for _, a := range addresses {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// Services of other controllers are not touched.
func TestAssign_LeavesOtherClassesAlone(t *testing.T) {
	other, mine := "metallb.io/metallb", Class
	s := state{
		nodes: []*corev1.Node{node(t, "a", "192.0.2.1")},
		services: []*corev1.Service{
			with(balancer("other", tcp(80)), func(s *corev1.Service) { s.Spec.LoadBalancerClass = &other }),
			with(balancer("mine", tcp(80)), func(s *corev1.Service) { s.Spec.LoadBalancerClass = &mine }),
			with(balancer("plain", tcp(81)), func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }),
			with(balancer("ending", tcp(82)), func(s *corev1.Service) {
				s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
			}),
		},
	}
	got := assign(s)
	if len(got) != 1 || got[0].service.Name != "mine" || join(got[0].addresses) != "192.0.2.1" {
		t.Errorf("assigned %+v", got)
	}
}

// An older service that changes its port does not take it from the one that has it.
func TestAssign_KeepsWhatAServiceHas(t *testing.T) {
	older, younger := balancer("older", tcp(80)), balancer("younger", tcp(80))
	younger.Status.LoadBalancer.Ingress = ingress(assignment{service: younger,
		addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	for _, a := range assign(state{nodes: []*corev1.Node{node(t, "a", "192.0.2.1")},
		services: []*corev1.Service{older, younger}}) {
		if has := len(a.addresses) > 0; has != (a.service == younger) {
			t.Errorf("%s has %v", a.service.Name, a.addresses)
		}
	}
}
