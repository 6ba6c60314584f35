package server

import (
	"context"
	"fmt"
	"net/netip"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	corev1 "k8s.io/api/core/v1"

	"github.com/mote-dev/mote/internal/clusterconfig"
)

// checkNodeRanges refuses pod ranges other than those the nodes' own were cut from. Upstream's
// controller would not start with them (its occupyCIDRs in
// pkg/controller/nodeipam/ipam/range_allocator.go, v1.37.2), nor say what to do.
func (s *Server) checkNodeRanges(ctx context.Context, client kubernetes.Interface) error {
	// What the API server has in memory is good enough: ranges of a node never change.
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	ranges := s.config.Cluster.ClusterCIDRs
	var fewer []string
	for _, n := range nodes.Items {
		if cidr := outside(n, ranges); cidr != "" {
			return fmt.Errorf(
				"cluster-cidr %s does not hold %s, which node %s has: give the ranges the cluster began with, in "+
					"their order", clusterconfig.Join(ranges), cidr, n.Name)
		}
		if have := len(n.Spec.PodCIDRs); have > 0 && have < len(ranges) {
			fewer = append(fewer, n.Name)
		}
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
