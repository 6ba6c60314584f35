package nodeclaims

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/mote-dev/mote/internal/hostaddr"
)

// newTestPlugin is a plugin of the server at 192.0.2.1 that knows node n1 at 192.0.2.11, node n2 at
// 192.0.2.12 and another server at 192.0.2.2.
func newTestPlugin(t *testing.T) *plugin {
	t.Helper()
	p := newPlugin(Config{
		Local:        "server1",
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")},
		PodsInRanges: true,
		Servers:      func() []net.IP { return []net.IP{net.IPv4(192, 0, 2, 1), hostaddr.Dummy} },
	})
	f := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	p.SetExternalKubeInformerFactory(f)
	p.SetReadyFunc(func() bool { return true })
	known := func(name, address string, ranges ...string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.NodeSpec{PodCIDRs: ranges},
			Status: corev1.NodeStatus{
				Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
			},
		}
	}
	for _, n := range []*corev1.Node{
		known("n1", "192.0.2.11", "10.42.1.0/24", "fd00:42:0:1::/64"),
		known("n2", "192.0.2.12", "10.42.2.0/24"), known("n3", "192.0.2.13"), known("server1", "192.0.2.1"),
	} {
		if err := f.Core().V1().Nodes().Informer().GetIndexer().Add(n); err != nil {
			t.Fatal(err)
		}
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.2"}}},
	}
	if err := f.Discovery().V1().EndpointSlices().Informer().GetIndexer().Add(slice); err != nil {
		t.Fatal(err)
	}
	return p
}

// asNode is the user that node name is.
func asNode(name string) user.Info {
	return &user.DefaultInfo{Name: userPrefix + name, Groups: []string{user.NodesGroup, user.AllAuthenticated}}
}

func (p *plugin) validate(t *testing.T, by user.Info, resource, subresource, name string,
	is, was runtime.Object) error {
	t.Helper()
	op := admission.Update
	if was == nil {
		op = admission.Create
	}
	return p.Validate(t.Context(), admission.NewAttributesRecord(is, was, api.Kind("Any").WithVersion("v1"), "", name,
		api.Resource(resource).WithVersion("v1"), subresource, op, nil, false, by), nil)
}

// A node changes or makes its Node, and says what others would act on.
func TestPlugin_Validate_Node(t *testing.T) {
	labelled := func(labels ...string) func(*api.Node) {
		return func(n *api.Node) {
			n.Labels = map[string]string{}
			for _, l := range labels {
				n.Labels[l] = "x"
			}
		}
	}
	ranged := func(ranges ...string) func(*api.Node) { return func(n *api.Node) { n.Spec.PodCIDRs = ranges } }
	at := func(kind api.NodeAddressType, address string) func(*api.Node) {
		return func(n *api.Node) {
			n.Status.Addresses = append(n.Status.Addresses, api.NodeAddress{Type: kind, Address: address})
		}
	}
	outside := func(ip string) func(*api.Node) {
		return func(n *api.Node) { n.Annotations = map[string]string{outsideAnnotation: ip} }
	}
	bootstrap := &user.DefaultInfo{Name: "system:bootstrap:abcdef", Groups: []string{"system:bootstrappers"}}
	for _, row := range []struct {
		name    string
		by      user.Info
		is, was func(*api.Node)
		says    string // "" for let through
	}{
		{"nothing of note", asNode("n1"), nil, nil, ""},
		{"its range, made up", asNode("n1"), ranged("10.42.9.0/24"), nil, "podCIDR"},
		{"its range, another node's", asNode("n1"), ranged("10.42.2.0/24"), nil, "podCIDR"},
		{"two ranges", asNode("n1"), ranged("10.42.9.0/24", "fd00:42:0:9::/64"), nil, "podCIDR"},
		{"its range, as it is", asNode("n1"), ranged("10.42.1.0/24"), ranged("10.42.1.0/24"), ""},
		{"its range, taken away", asNode("n1"), nil, ranged("10.42.1.0/24"), "podCIDR"},
		{"its range, with a token", bootstrap, ranged("10.42.9.0/24"), nil, "podCIDR"},
		{"its range, with half of an identity", &user.DefaultInfo{Name: "n1", Groups: []string{user.NodesGroup}},
			ranged("10.42.9.0/24"), nil, "podCIDR"},
		{"its range, without the group", &user.DefaultInfo{Name: userPrefix + "n1"}, ranged("10.42.9.0/24"), nil,
			"podCIDR"},
		{"a range, by the controllers", &user.DefaultInfo{Name: "system:kube-controller-manager"},
			ranged("10.42.9.0/24"), nil, ""},

		{"its address", asNode("n1"), at(api.NodeInternalIP, "192.0.2.11"), nil, ""},
		{"its address, IPv6", asNode("n1"), at(api.NodeInternalIP, "2001:db8::11"), nil, ""},
		{"another node's, which may have moved", asNode("n1"), at(api.NodeInternalIP, "192.0.2.12"), nil, ""},
		{"of a machine without a network", asNode("n1"), at(api.NodeInternalIP, hostaddr.Dummy.String()), nil, ""},
		{"this server's", asNode("n1"), at(api.NodeInternalIP, "192.0.2.1"), nil, "API server"},
		{"this server's, mapped", asNode("n1"), at(api.NodeInternalIP, "::ffff:192.0.2.1"), nil, "API server"},
		{"this server's, as external", asNode("n1"), at(api.NodeExternalIP, "192.0.2.1"), nil, "API server"},
		{"another server's", asNode("n1"), at(api.NodeInternalIP, "192.0.2.2"), nil, "API server"},
		{"this server's, by its own node", asNode("server1"), at(api.NodeInternalIP, "192.0.2.1"), nil, ""},
		{"a server's, which came later", asNode("n1"), at(api.NodeInternalIP, "192.0.2.2"),
			at(api.NodeInternalIP, "192.0.2.2"), ""},
		{"a pod's", asNode("n1"), at(api.NodeInternalIP, "10.42.2.7"), nil, "range of the cluster's pods"},
		{"a pod's, IPv6", asNode("n1"), at(api.NodeInternalIP, "fd00:42:0:2::7"), nil, "range of the cluster's pods"},
		{"a service's", asNode("n1"), at(api.NodeExternalIP, "10.43.0.1"), nil, "range of the cluster's services"},
		{"loopback", asNode("n1"), at(api.NodeInternalIP, "127.0.0.1"), nil, "one machine"},
		{"every host", asNode("n1"), at(api.NodeInternalIP, "255.255.255.255"), nil, "one machine"},
		{"multicast", asNode("n1"), at(api.NodeInternalIP, "224.0.0.1"), nil, "one machine"},
		{"link-local", asNode("n1"), at(api.NodeInternalIP, "169.254.169.254"), nil, "one machine"},
		{"link-local with a zone", asNode("n1"), at(api.NodeInternalIP, "fe80::1%eth0"), nil, "one machine"},
		{"a name for an address", asNode("n1"), at(api.NodeInternalIP, "localhost"), nil, "IP address"},
		{"its name", asNode("n1"), at(api.NodeHostName, "n1"), nil, ""},
		{"its name in capitals", asNode("n1"), at(api.NodeHostName, "N1"), nil, ""},
		{"another node's name", asNode("n1"), at(api.NodeHostName, "n2"), nil, "not the node's name"},
		{"an API server's name", asNode("n1"), at(api.NodeHostName, "kubernetes"), nil, "not the node's name"},
		{"an address for a name", asNode("n1"), at(api.NodeHostName, "192.0.2.1"), nil, "not the node's name"},
		{"another DNS name", asNode("n1"), at(api.NodeInternalDNS, "kubernetes.default.svc"), nil,
			"not the node's name"},
		{"another external DNS name", asNode("n1"), at(api.NodeExternalDNS, "example.com"), nil,
			"not the node's name"},
		{"an address the API server makes itself", asNode("n1"), at("mote.dev/ProxyHost", "192.0.2.12"), nil,
			"of this type"},

		{"its outside address", asNode("n1"), outside("198.51.100.1"), nil, ""},
		{"the outside address it shares with a server", asNode("n1"), outside("192.0.2.2"), nil, ""},
		{"a pod's as outside", asNode("n1"), outside("10.42.2.7"), nil, "range of the cluster's pods"},
		{"multicast as outside", asNode("n1"), outside("239.0.0.1"), nil, "one machine"},
		{"no outside address any more", asNode("n1"), nil, outside("198.51.100.1"), ""},

		{"a label of its own", asNode("n1"), labelled("example.com/gpu"), nil, ""},
		{"a label of mote", asNode("n1"), labelled("mote.dev/pool"), nil, "mote.dev/pool"},
		{"a label below mote's domain", asNode("n1"), labelled("lb.mote.dev/pool"), nil, "lb.mote.dev/pool"},
		{"a label of mote, as it is", asNode("n1"), labelled("mote.dev/pool"), labelled("mote.dev/pool"), ""},
		{"a label of mote, taken away", asNode("n1"), nil, labelled("mote.dev/pool"), "mote.dev/pool"},
		{"a label that chooses it for load balancers", asNode("n1"),
			labelled("svccontroller.k3s.cattle.io/enablelb"), nil, "svccontroller.k3s.cattle.io/enablelb"},
		{"a label that only looks like mote's", asNode("n1"), labelled("notmote.dev/pool"), nil, ""},
		{"back into service", asNode("n1"), nil, func(n *api.Node) { n.Spec.Unschedulable = true }, "uncordon n1"},
		{"out of service", asNode("n1"), func(n *api.Node) { n.Spec.Unschedulable = true }, nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, is, was := newTestPlugin(t), &api.Node{}, &api.Node{}
			if row.is != nil {
				row.is(is)
			}
			if row.was != nil {
				row.was(was)
			}
			for subresource, before := range map[string]runtime.Object{"": was, "status": was, "create": nil} {
				if subresource == "create" {
					if row.was != nil {
						continue
					}
					subresource = ""
				}
				want(t, p.validate(t, row.by, "nodes", subresource, "n1", is, before), row.says)
			}
		})
	}
}

func want(t *testing.T, err error, says string) {
	t.Helper()
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("answer is %v, want %q", err, says)
	}
}

// A node reports addresses of its pods, which services lead to and network policies let through.
func TestPlugin_Validate_Pod(t *testing.T) {
	pod := func(host bool, ips ...string) *api.Pod {
		is := &api.Pod{Spec: api.PodSpec{HostNetwork: host}}
		for _, ip := range ips {
			is.Status.PodIPs = append(is.Status.PodIPs, api.PodIP{IP: ip})
		}
		return is
	}
	onHost := func(ip string) *api.Pod {
		is := pod(false)
		is.Status.HostIP, is.Status.HostIPs = ip, []api.HostIP{{IP: ip}}
		return is
	}
	for _, row := range []struct {
		name    string
		node    string
		is, was *api.Pod
		says    string
	}{
		{"in its range", "n1", pod(false, "10.42.1.7", "fd00:42:0:1::7"), pod(false), ""},
		{"in another node's", "n1", pod(false, "10.42.2.7"), pod(false), "not in the range of node n1"},
		{"in nobody's", "n1", pod(false, "10.42.9.7"), pod(false), "not in the range of node n1"},
		{"as the second", "n1", pod(false, "10.42.1.7", "fd00:42:0:2::7"), pod(false), "not in the range of node n1"},
		{"from before the node's range changed", "n1", pod(false, "10.42.9.7"), pod(false, "10.42.9.7"), ""},
		{"before the node has a range", "n3", pod(false, "10.42.9.7"), pod(false), ""},
		{"another's, before the node has a range", "n3", pod(false, "10.42.2.7"), pod(false), "range of node n2"},
		{"of a network of the user's", "n1", pod(false, "172.30.0.7"), pod(false), ""},
		{"of another node", "n1", pod(false, "192.0.2.12"), pod(false), "address of node n2"},
		{"of a server", "n1", pod(false, "192.0.2.2"), pod(false), "API server"},
		{"of a service", "n1", pod(false, "10.43.0.10"), pod(false), "range of the cluster's services"},
		{"loopback", "n1", pod(false, "127.0.0.1"), pod(false), "not the address of a pod"},
		{"on the host's network", "n1", pod(true, "192.0.2.11"), pod(true), ""},
		{"on the host's network, not reported yet", "n1", pod(true, "192.0.2.99"), pod(true), ""},
		{"on the network of another host", "n1", pod(true, "192.0.2.12"), pod(true), "address of node n2"},
		{"on a server's network", "n1", pod(true, "192.0.2.1"), pod(true), "node server1"},
		{"on the server's network, by its node", "server1", pod(true, "192.0.2.1"), pod(true), ""},
		{"on the host's network, a pod's", "n1", pod(true, "10.42.2.7"), pod(true), "range of the cluster's pods"},
		{"host", "n1", onHost("192.0.2.11"), pod(false), ""},
		{"another host", "n1", onHost("192.0.2.12"), pod(false), "address of node n2"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newTestPlugin(t)
			want(t, p.validate(t, asNode(row.node), "pods", "status", "p", row.is, row.was), row.says)
			if admin := (&user.DefaultInfo{Name: "admin"}); row.says != "" {
				want(t, p.validate(t, admin, "pods", "status", "p", row.is, row.was), "")
			}
		})
	}
	p := newTestPlugin(t)
	p.config.PodsInRanges = false
	want(t, p.validate(t, asNode("n1"), "pods", "status", "p", pod(false, "10.42.2.7"), pod(false)), "")
}
