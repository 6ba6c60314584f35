// Command coredns is CoreDNS with the plugins the conformance suite configures, for the agnhost
// image.
//
// It must not import anything else of this repository.
package main
