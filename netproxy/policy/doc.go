// Package policy owns NetworkPolicy on one node: it renders the policies that select the node's
// pods into one nftables table with a pure function, and keeps that table in place.
//
// While the cluster has no policy it watches nothing but policies, and there is no table.
//
// It must not import server, agent, runtime, store or netproxy/podnet.
package policy
