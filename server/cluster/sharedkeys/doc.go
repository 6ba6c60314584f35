// Package sharedkeys owns how servers of one etcd come to the same keys and
// settings: the first leaves its own there, encrypted with a key made from the
// token all servers are given, and the others take them over or are refused.
//
// It must not import anything else of this repository.
package sharedkeys
