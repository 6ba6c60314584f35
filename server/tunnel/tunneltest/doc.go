// Package tunneltest owns the tests of both ends of the tunnel together: the node's, agent/tunnel,
// and the server's, server/tunnel, which do not know each other. Only its own tests use it.
//
// It must not import anything else of this repository but agent/tunnel, server/tunnel and
// internal/joinapi.
package tunneltest
