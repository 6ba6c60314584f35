package server

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	corev1 "k8s.io/api/core/v1"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// checkNodeRanges refuses pod ranges other than those the nodes' own were cut from: the oldest
// node's tells. Upstream's controller would not start with them (its occupyCIDRs in
// pkg/controller/nodeipam/ipam/range_allocator.go, v1.37.2), nor say what to do. A later node with
// a range of its own choice does not keep a server from starting.
func (s *Server) checkNodeRanges(ctx context.Context, client kubernetes.Interface) error {
	// What the API server has in memory is good enough: ranges of a node never change.
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	slices.SortFunc(nodes.Items, func(a, b corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	ranges := s.config.Cluster.ClusterCIDRs
	var fewer, foreign []string
	inside := false
	for _, n := range nodes.Items {
		switch cidr := outside(n, ranges); {
		case cidr != "" && !inside:
			return fmt.Errorf(
				"cluster-cidr %s does not hold %s, which node %s has: give the ranges the cluster began with, in "+
					"their order", clusterconfig.Join(ranges), cidr, n.Name)
		case cidr != "":
			foreign = append(foreign, n.Name)
			continue
		}
		have := len(n.Spec.PodCIDRs)
		inside = inside || have > 0
		if have > 0 && have < len(ranges) {
			fewer = append(fewer, n.Name)
		}
	}
	if len(foreign) > 0 {
		s.config.Logger.Warn(
			"nodes have pod ranges outside cluster-cidr, to which no other node routes: see who made them, and "+
				"`kubectl delete node NAME` gives them others when they register again",
			zap.Strings("nodes", foreign))
	}
	if len(fewer) > 0 {
		s.config.Logger.Warn(
			"nodes joined before cluster-cidr had two ranges, and their pods have addresses of the first alone: "+
				"`kubectl delete node NAME` and a restart of mote there make them join anew",
			zap.Strings("nodes", fewer))
	}
	return nil
}

// outside is the first pod range of a node that lies outside the cluster's at its place, or empty.
func outside(n corev1.Node, ranges []netip.Prefix) string {
	for i, cidr := range n.Spec.PodCIDRs {
		r, err := netip.ParsePrefix(cidr)
		if err != nil || i >= len(ranges) || !ranges[i].Contains(r.Addr()) {
			return cidr
		}
	}
	return ""
}
