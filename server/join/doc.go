// Package join owns how machines become nodes of this cluster, on the server's side: tokens, which
// machine a node name belongs to, the paths of joinapi in front of the Kubernetes API, and which
// certificates kubelets get.
//
// A node gets its first certificate through Kubernetes' own certificate API, with no more rights
// than a bootstrap token gives. The token alone does not reach that API: it is checked here, where
// the name is bound to the machine that used it first, so that a token cannot take over another
// node's name.
//
// It must not import agent, store or cmd.
package join
