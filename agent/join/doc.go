// Package join owns a node's membership in a cluster whose server runs on another machine: the
// first handshake, the identity on disk, and the renewal of its certificate.
//
// Keys are generated here and never leave the node. The node fetches the server's CA certificate
// without trust and accepts it only if it matches the token's pin; for a token without a pin, the
// first CA wins. From then on that CA is the only authority, whatever address a server has. Servers
// are verified by a name that only their certificates contain, so a node with a certificate of the
// same CA cannot pose as a server.
//
// It must not import anything else of this repository but agent/balancer, internal/atomicfile,
// internal/clusterconfig, internal/joinapi, internal/retry and internal/wallclock.
package join
