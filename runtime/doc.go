// Package runtime owns the container runtime of a node: containerd linked into
// this process, the bundled tools it runs, the images loaded from archives, and
// the repair of whatever a power cut left of its state. It must not import
// server, agent, store or netproxy.
package runtime
