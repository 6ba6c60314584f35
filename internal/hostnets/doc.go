// Package hostnets owns what this machine's interfaces and routes use of the address space, and
// which of it overlaps the ranges of a cluster.
//
// It must not import anything else of this repository but internal/clusterconfig.
package hostnets
