// Package loopback owns the in-process transport: it carries HTTP requests from one part of the
// process to the API server's handler without sockets, TLS or HTTP framing, together with the
// identity of the part that makes them.
//
// It must not import anything else of this repository.
package loopback
