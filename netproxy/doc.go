// Package netproxy owns what carries packets on a node: the service proxy, composed from upstream's
// proxiers, and the pod network of package podnet. Both are fed from the same informers.
//
// Rules stay in place when [Proxy.Run] ends, because pods keep running; [Cleanup] removes them.
//
// It must not import server, agent, runtime or store.
package netproxy
