package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

func object(name string, port int32, cidrs []string, ips ...string) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	for _, ip := range ips {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	o.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	return o
}

func TestNodes_Find(t *testing.T) {
	n := newNodes(func(string) {})
	n.OnAdd(object("home1", 0, []string{"10.42.1.0/24", "fd00:42:0:1::/64"}, "192.168.1.10", "fd00::10"), true)
	n.OnAdd(object("home2", 10250, []string{"10.42.2.0/24"}, "192.168.1.10"), true)
	n.OnAdd(object("other.port", 10260, []string{"10.42.3.0/24"}, "192.168.1.30"), true)
	n.OnAdd(object("bare", 10250, nil), true)
	for _, row := range []struct {
		address string
		want    way
		err     error
	}{
		{"home1:10250", way{"home1", "kubelet", "192.168.1.10:10250"}, nil},
		{"HOME2:10250", way{"home2", "kubelet", "192.168.1.10:10250"}, nil},
		{"home1:9100", way{"", "", "192.168.1.10:9100"}, nil},
		{"other.port:10260", way{"other.port", "kubelet", "192.168.1.30:10260"}, nil},
		{"other.port:10250", way{"", "", "192.168.1.30:10250"}, nil},
		{"192.168.1.30:10260", way{"other.port", "kubelet", "192.168.1.30:10260"}, nil},
		{"192.168.1.30:10250", way{"", "", "192.168.1.30:10250"}, nil},
		{"192.168.1.10:10250", way{}, ErrAmbiguous},
		{"192.168.1.10:443", way{"", "", "192.168.1.10:443"}, nil},
		{"[fd00::10]:10250", way{"home1", "kubelet", "[fd00::10]:10250"}, nil},
		{"10.42.1.7:8443", way{"home1", "10.42.1.7:8443", "10.42.1.7:8443"}, nil},
		{"[::ffff:10.42.2.7]:80", way{"home2", "10.42.2.7:80", "[::ffff:10.42.2.7]:80"}, nil},
		{"[fd00:42:0:1::7]:80", way{"home1", "[fd00:42:0:1::7]:80", "[fd00:42:0:1::7]:80"}, nil},
		{"10.42.4.7:80", way{"", "", "10.42.4.7:80"}, nil},
		{"bare:10250", way{"bare", "kubelet", "bare:10250"}, nil},
		{"hooks.example.com:443", way{"", "", "hooks.example.com:443"}, nil},
	} {
		got, err := n.find(row.address)
		if got != row.want || !errors.Is(err, row.err) {
			t.Errorf("%s: %+v, %v, want %+v, %v", row.address, got, err, row.want, row.err)
		}
	}
	if _, err := n.find("no-port"); err == nil {
		t.Error("an address without port is taken")
	}
	for name, want := range map[string]string{"home1": "fd00::10", "home2": "", "other.port": "192.168.1.30",
		"bare": "", "unknown": ""} {
		if got := n.host(name); got != want {
			t.Errorf("host of %s is %q, want %q", name, got, want)
		}
	}
}

// What a node was is forgotten when it changes or goes.
func TestNodes_Changes(t *testing.T) {
	n := newNodes(func(string) {})
	before := object("a", 10250, []string{"10.42.1.0/24"}, "192.168.1.1")
	n.OnAdd(before, true)
	n.OnAdd(object("b", 10250, []string{"10.42.2.0/24"}, "192.168.1.1"), true)
	after := object("a", 10250, []string{"10.42.9.0/25"}, "192.168.1.2")
	n.OnUpdate(before, after)
	for address, want := range map[string]string{"10.42.1.1:1": "", "10.42.9.1:1": "a", "192.168.1.1:10250": "b",
		"192.168.1.2:10250": "a", "10.42.2.1:1": "b"} {
		if got, err := n.find(address); err != nil || got.node != want {
			t.Errorf("%s leads to %q, %v, want %q", address, got.node, err, want)
		}
	}
	n.OnDelete(cache.DeletedFinalStateUnknown{Obj: after})
	n.OnDelete(object("b", 0, nil))
	if len(n.byName)+len(n.byIP)+len(n.byRange)+len(n.lengths) != 0 {
		t.Errorf("left over: %+v", n)
	}
}

// A node that was deleted while nobody watched goes after the one that has its range now.
func TestNodes_RangeChangesHands(t *testing.T) {
	n := newNodes(func(string) {})
	before := object("before", 10250, []string{"10.42.1.0/24"}, "192.168.1.1")
	n.OnAdd(before, true)
	n.OnAdd(object("after", 10250, []string{"10.42.1.0/24"}, "192.168.1.2"), true)
	n.OnDelete(cache.DeletedFinalStateUnknown{Obj: before})
	if got, err := n.find("10.42.1.7:80"); err != nil || got.node != "after" {
		t.Errorf("leads to %q, %v", got.node, err)
	}
	n.OnDelete(object("after", 10250, nil))
	if len(n.byName)+len(n.byIP)+len(n.byRange)+len(n.lengths) != 0 {
		t.Errorf("left over: %+v", n)
	}
}

// A node that says it has an older one's address, and for its kubelet the port of something else
// that listens there, gets no connection meant for that.
func TestNodes_Find_AnotherNodesAddress(t *testing.T) {
	at := func(o *corev1.Node, seconds int64) *corev1.Node {
		o.CreationTimestamp = metav1.Unix(seconds, 0)
		return o
	}
	for _, order := range [][]string{{"victim", "rogue"}, {"rogue", "victim"}} {
		n := newNodes(func(string) {})
		for _, name := range order {
			if name == "victim" {
				n.OnAdd(at(object("victim", 10250, []string{"10.42.1.0/24"}, "192.168.1.1"), 1), true)
			} else {
				n.OnAdd(at(object("rogue", 8443, []string{"10.42.2.0/24"}, "192.168.1.1"), 2), true)
			}
		}
		for address, want := range map[string]string{"192.168.1.1:8443": "", "192.168.1.1:10250": "victim",
			"rogue:8443": "rogue", "10.42.1.7:8443": "victim"} {
			if got, err := n.find(address); err != nil || got.node != want {
				t.Errorf("with %v %s leads to %q, %v, want %q", order, address, got.node, err, want)
			}
		}
	}
}

// A node that came later with a range that is another's, in part or as a part, or outside the
// cluster's, gets no connection meant for others.
func TestNodes_Find_AnotherNodesRange(t *testing.T) {
	for _, cidr := range []string{"10.42.1.0/24", "10.42.1.0/25", "10.42.0.0/16", "192.0.2.0/24", "0.0.0.0/0"} {
		victim := object("victim", 10250, []string{"10.42.1.0/24"}, "192.168.1.1")
		victim.CreationTimestamp = metav1.Unix(1, 0)
		rogue := object("a-rogue", 8443, []string{cidr}, "192.168.1.2", "10.42.1.7")
		rogue.CreationTimestamp = metav1.Unix(2, 0)
		for _, order := range [][]*corev1.Node{{victim, rogue}, {rogue, victim}} {
			n := newNodes(func(string) {})
			n.within = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
			for _, o := range order {
				n.OnAdd(o, true)
			}
			for address, want := range map[string]string{"10.42.1.7:8443": "victim", "192.0.2.7:443": ""} {
				if got, err := n.find(address); err != nil || got.node != want {
					t.Errorf("beside %s, %s leads to %q, %v, want %q", cidr, address, got.node, err, want)
				}
			}
		}
	}
}

// A node whose name is an address gets no connection meant for whoever has it.
func TestNodes_Find_NameIsAnAddress(t *testing.T) {
	n := newNodes(func(string) {})
	n.OnAdd(object("victim", 10250, []string{"10.42.1.0/24"}, "192.168.1.1"), true)
	for _, name := range []string{"10.42.1.7", "192.168.1.1", "192.168.1.3"} {
		n.OnAdd(object(name, 8443, nil, "192.168.1.2"), true)
	}
	for address, want := range map[string]string{"10.42.1.7:8443": "victim", "192.168.1.1:8443": "",
		"192.168.1.1:10250": "victim", "192.168.1.3:8443": "192.168.1.3"} {
		if got, err := n.find(address); err != nil || got.node != want {
			t.Errorf("%s leads to %q, %v, want %q", address, got.node, err, want)
		}
	}
}

func BenchmarkNodes_Find(b *testing.B) {
	n := newNodes(func(string) {})
	for i := range 1000 {
		n.OnAdd(object(fmt.Sprintf("node%d", i), 10250, []string{fmt.Sprintf("10.%d.%d.0/24", 42+i/256, i%256)},
			fmt.Sprintf("192.168.%d.%d", i/250, i%250)), true)
	}
	for b.Loop() {
		if _, err := n.find("10.43.7.9:80"); err != nil {
			b.Fatal(err)
		}
	}
}
