// Package discovery owns how nodes find a server of their cluster again on the
// local link when none of the addresses they know answers any more: servers
// answer questions for _mote._tcp.local by multicast DNS (RFC 6762, 6763), with
// the CA's pin in the TXT record. IPv4 only.
//
// What is found is a hint that anybody on the link can forge; who uses it must
// verify the server by the pinned CA.
//
// It must not import anything else of this repository.
package discovery
