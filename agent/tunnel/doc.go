// Package tunnel owns the node's end of the connection through which its
// servers reach it: one to each server, opened here, kept and made anew, and
// what may be reached through it, the node's kubelet and its pods.
//
// A server on the way to a node would need an address that leads there, which
// machines behind a NAT do not have. So the node dials, and on the connection
// serves HTTP/2 to the server, each stream one TCP connection to a target.
//
// It must not import server, the kubelet or Kubernetes' client.
package tunnel
