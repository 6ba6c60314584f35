// Package join owns a node's membership in a cluster whose server runs on
// another machine: the first handshake, the identity kept on disk, and the
// renewal of its certificate.
//
// Keys are made here and never leave the node. The server's CA certificate is
// fetched once without trust and believed only if it has the token's pin (or,
// for tokens without a pin, because it was the first); from then on it is the
// only authority, whatever address a server answers at. Servers are verified by
// a name only they have a certificate for, so a node's certificate of the same
// authority does not make its holder a server.
//
// It must not import server, store or the kubelet.
package join
