// Package sharedkeys owns how the servers of one etcd get the same keys and settings. The first
// server stores its own there, encrypted with a key derived from the token that all servers are
// given; the others adopt them or are refused.
//
// It must not import server, agent or k8s.io.
package sharedkeys
