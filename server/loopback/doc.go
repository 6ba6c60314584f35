// Package loopback carries HTTP requests from one part of the process to the
// API server's handler without sockets, TLS or HTTP framing, and tells the
// handler which part is asking.
//
// It must not import the API server: it knows only http.Handler.
package loopback
