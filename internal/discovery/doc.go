// Package discovery owns how a node finds a server of its cluster on the local link when none of
// the addresses it knows answers any more: servers answer questions for _mote._tcp.local by
// multicast DNS (RFC 6762, 6763), with the CA's pin in the TXT record. IPv4 only.
//
// An answer is a hint that anybody on the link can forge: callers must verify the server by the
// pinned CA.
//
// It must not import anything else of this repository but internal/retry.
package discovery
