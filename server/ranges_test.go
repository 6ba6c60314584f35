package server

import (
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestServer_CheckNodeRanges(t *testing.T) {
	const four, six = "10.42.0.0/16", "fd42::/56"
	for _, row := range []struct {
		name   string
		ranges []string
		node   []string
		fault  string // empty for none
		warned bool
	}{
		{"as it was", []string{four, six}, []string{"10.42.3.0/24", "fd42:0:0:3::/64"}, "", false},
		{"no range yet", []string{four, six}, nil, "", false},
		{"one family less", []string{four}, []string{"10.42.3.0/24", "fd42:0:0:3::/64"},
			"does not hold fd42:0:0:3::/64, which node n1 has: give the ranges", false},
		{"one family more", []string{four, six}, []string{"10.42.3.0/24"}, "", true},
		{"other order", []string{six, four}, []string{"10.42.3.0/24", "fd42:0:0:3::/64"},
			"cluster-cidr fd42::/56,10.42.0.0/16 does not hold 10.42.3.0/24", false},
		{"other range", []string{"10.52.0.0/16"}, []string{"10.42.3.0/24"}, "does not hold 10.42.3.0/24", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			core, said := observer.New(zap.WarnLevel)
			s := &Server{config: Config{Logger: zap.New(core)}}
			for _, r := range row.ranges {
				s.config.Cluster.ClusterCIDRs = append(s.config.Cluster.ClusterCIDRs, netip.MustParsePrefix(r))
			}
			client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
				Spec: corev1.NodeSpec{PodCIDRs: row.node}})
			err := s.checkNodeRanges(t.Context(), client)
			if (err != nil) != (row.fault != "") || err != nil && !strings.Contains(err.Error(), row.fault) {
				t.Errorf("fault %v, want %q", err, row.fault)
			}
			if got := said.Len() > 0; got != row.warned {
				t.Errorf("said %v", said.All())
			}
		})
	}
}

// A node that chose its range itself, at a server of an older mote, does not keep a server from
// starting; other ranges than the oldest node's do.
func TestServer_CheckNodeRanges_TheOldestNodeCounts(t *testing.T) {
	node := func(name string, since int64, cidr string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(since, 0)},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		}
	}
	for _, row := range []struct {
		name                string
		server, other, late string
		fault, warned       bool
	}{
		{
			name:   "as it was",
			server: "10.42.0.0/24",
			other:  "10.42.1.0/24",
			late:   "10.42.2.0/24",
		},
		{
			name:   "a later node outside",
			server: "10.42.0.0/24",
			other:  "10.42.1.0/24",
			late:   "198.18.0.0/15",
			warned: true,
		},
		{
			name:   "the oldest outside",
			server: "10.52.0.0/24",
			other:  "10.42.1.0/24",
			late:   "10.42.2.0/24",
			fault:  true,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			core, said := observer.New(zap.WarnLevel)
			s := &Server{config: Config{Logger: zap.New(core)}}
			s.config.Cluster.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
			client := fake.NewClientset(node("a-late", 3, row.late), node("b-other", 2, row.other),
				node("server", 1, row.server))
			if err := s.checkNodeRanges(t.Context(), client); (err != nil) != row.fault {
				t.Errorf("fault %v, want %v", err, row.fault)
			}
			if got := said.Len() > 0; got != row.warned {
				t.Errorf("said %v", said.All())
			}
		})
	}
}
