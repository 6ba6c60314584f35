// Command coredns is CoreDNS with the plugins the conformance suite configures: the agnhost image has one. It must not import anything
// of mote's.
package main
