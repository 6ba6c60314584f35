// Package loadbalancer owns the addresses of services of type LoadBalancer: it gives them addresses
// of nodes, and says in an event why one gets none.
//
// It must not import anything else of this repository but internal/hostports and internal/retry.
package loadbalancer
