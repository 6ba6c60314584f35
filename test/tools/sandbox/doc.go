// Package sandbox owns the machine that a test process gets for itself on the machine it runs on:
// its own processes, mounts, network, host name and cgroups, and further hosts on one network. All
// of it is removed when the test ends, however it ends.
//
// It must not import anything else of this repository.
package sandbox
