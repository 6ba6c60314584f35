// Package servicelb owns a node's part in load balancers: it finds the ports that programs of the
// host listen on, reports them on the Node, and keeps the service proxy from taking them over.
//
// It must not import anything else of this repository but internal/hostports and internal/retry.
package servicelb
