// Package runtimetest owns what tests need to drive a container runtime: a data folder that is
// cleaned up, a child process that runs a Runtime over it, small images packed without a registry,
// and pods. Only tests may import it.
//
// It must not import server, agent, store, netproxy or cmd.
package runtimetest
