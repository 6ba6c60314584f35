// Command hollow runs many nodes of a cluster in one process. Each node joins, keeps its tunnel,
// heartbeats and watches as `mote agent` does, through the agent's own code. It runs no pods: its
// kubelet, service proxy and DNS only make the requests the real ones would make.
//
// It must not import server or store.
package main
