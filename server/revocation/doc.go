// Package revocation owns the list of client certificates that are refused before they expire, the
// object that stores it, and the handler that refuses them: new requests and those that are
// running.
//
// It must not import anything else of this repository but internal/joinapi.
package revocation
