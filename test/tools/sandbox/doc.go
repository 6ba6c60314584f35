// Package sandbox gives a test process a machine of its own on the machine it runs on: its own processes, mounts, network, host name
// and cgroups, thrown away whole when the test ends, however it ends; and in it further hosts, on one network. It must not import the tests or anything of mote's.
package sandbox
