// Command hollow is many nodes of a cluster in one process: each joins, keeps its tunnel, its heartbeats and the watches as `mote agent`
// does and through the agent's own code, but runs no pods, and its kubelet, service proxy and DNS are nothing but what they ask of the
// server. It must not import server or store.
package main
