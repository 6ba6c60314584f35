// Package recovery owns what the container runtime does about a stop that was not clean: checking
// containerd's records, setting damaged ones aside, ending pods, and removing all traces of a data
// folder's pods.
//
// It must not import server, agent, store, netproxy, cmd or github.com/containerd/containerd.
package recovery
