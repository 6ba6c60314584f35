// Package runtimetest owns what tests need to drive a container runtime: a child
// process that runs one, small images packed without a registry, and pods. It
// must not be imported outside of tests, and must not import server, agent,
// store or netproxy.
package runtimetest
