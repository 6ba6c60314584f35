// Package revocation owns the list of client certificates that are refused
// before they end, the object it is kept in, and the handler that refuses them:
// new requests and those that are running.
//
// It must not import the API server, keys or the joining of nodes: they ask it.
package revocation
