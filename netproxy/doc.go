// Package netproxy owns what carries packets on a node: the service proxy, for which upstream's proxiers are composed as a
// library, and the pod network of package podnet, fed from the same informers.
//
// Rules stay in place when [Proxy.Run] ends, because pods run on; [Cleanup] removes what was made. It must not import the
// packages server, agent, runtime or store.
package netproxy
