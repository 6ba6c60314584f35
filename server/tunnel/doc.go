// Package tunnel owns the server's end of the connections that nodes open so that the server can
// reach them: which node has one, which addresses are reached through it, and the streams in it.
//
// It must not import anything else of this repository but internal/joinapi.
package tunnel
