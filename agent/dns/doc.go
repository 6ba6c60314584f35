// Package dns owns name resolution on a node: it answers for the cluster's domain from the node's
// own informers, after the Kubernetes DNS specification 1.1, and forwards and caches everything
// else.
//
// It listens on the cluster DNS address itself, which it adds to an interface of the node. So pods
// can resolve names before the service proxy runs, without one, and while the API server is away. A
// checkpoint file carries the last known records over a restart.
//
// It must not import anything else of this repository but internal/atomicfile, internal/informer,
// internal/resolvconf and internal/retry.
package dns
