// Package tunneltest owns the tests of both ends of the tunnel together: the
// node's, agent/tunnel, and the server's, server/tunnel, which do not know each
// other.
//
// Nothing must import it.
package tunneltest
