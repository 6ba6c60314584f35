// Package podnet owns the pod network of one node: the CNI network list, the node's own packet filter rules, the kernel
// settings both need, and their repair when something else on the host changes them.
//
// The wanted state is always the whole state: [Network] is told which pod CIDRs the node has and who its peers are, reads
// the rest from the kernel, renders conflist and rules with pure functions, and applies what differs. Applying twice
// changes nothing, so a restart of the process under running pods is harmless.
//
// It must not import the packages server, agent, runtime or store, nor anything of Kubernetes: its callers translate.
package podnet
