// Package policy owns NetworkPolicy on one node: it renders the policies that concern the node's pods into one nftables
// table by a pure function, and keeps that table as wanted.
//
// Without a policy in the cluster nothing is watched but policies, and there is no table. It must not import the packages
// server, agent, runtime, store or podnet.
package policy
