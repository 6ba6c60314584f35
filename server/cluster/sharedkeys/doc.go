// Package sharedkeys owns how the servers of one etcd agree on keys and settings. The first server
// stores its own in the etcd, encrypted with a key derived from the servers' token. The others take
// these, or are refused.
//
// It must not import server, agent or k8s.io.
package sharedkeys
