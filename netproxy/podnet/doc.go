// Package podnet owns the pod network of one node: the CNI network list, the node's own packet
// filter rules, routes and the overlay to other nodes, the kernel settings all of them need, and
// their repair when something else on the host changes them.
//
// The wanted state is always complete: [Network] is given the node's pod CIDRs and its peers, reads
// the rest from the kernel, renders network list and rules with pure functions, and applies what
// differs. Applying twice changes nothing, so restarting the process under running pods is
// harmless. Callers translate from Kubernetes' types.
//
// It must not import server, agent, runtime, store, k8s.io or sigs.k8s.io.
package podnet
