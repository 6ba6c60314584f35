// Package join owns how machines become nodes of this cluster, on the server's
// side: tokens, which machine a node name belongs to, the requests in front of
// the Kubernetes API that joinapi describes, and which certificates kubelets get.
//
// A node gets its first certificate by Kubernetes' own certificate API, with no
// more rights than a bootstrap token gives. The token alone does not reach that
// API: it is checked here, where the name is bound to the machine that used it
// first, so that a token takes over nobody's name.
//
// It must not import the agent, the store or the command line.
package join
