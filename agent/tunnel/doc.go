// Package tunnel owns the node's side of the connections through which servers reach it: one to
// each server, opened by the node and reopened when it breaks, and what servers may reach through
// it, the node's kubelet and its pods.
//
// For a server to dial a node, the node would need a reachable address, which machines behind a NAT
// lack. So the node dials, and serves HTTP/2 to the server over that connection; each stream is one
// TCP connection to a target.
//
// It must not import anything else of this repository but internal/joinapi and internal/retry.
package tunnel
