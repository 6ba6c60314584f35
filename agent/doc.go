// Package agent owns a node: the join client, the kubelet, DNS, and the order in which container
// runtime and service proxy come up beside them.
//
// It must not import server, store or cmd.
package agent
