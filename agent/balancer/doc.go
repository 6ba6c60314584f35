// Package balancer owns how a node finds a server that answers: it dials the known servers of the
// cluster in turn, remembers which one answered, and reports whether any does.
//
// It must not import anything else of this repository but internal/retry.
package balancer
