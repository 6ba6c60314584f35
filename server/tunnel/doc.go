// Package tunnel owns the server's end of the connections that nodes open to be
// reached: who has one, which addresses lead through it, and the streams in it.
//
// It must not import the API server, the agent or Kubernetes' client.
package tunnel
