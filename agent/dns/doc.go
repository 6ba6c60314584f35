// Package dns owns the names of a node: it answers for the cluster's domain from the node's own informers, after the
// Kubernetes DNS specification 1.1, and forwards and caches everything else.
//
// It answers on the cluster DNS address itself, which it adds to an interface of the node, so pods have names before and
// without the service proxy, and while the API server is away; what was last known is kept in a checkpoint file for
// restarts. It must not import the packages server, store, runtime, netproxy or agent.
package dns
