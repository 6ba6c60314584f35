// Package runtime owns the container runtime of a node: containerd linked into this process and its
// CRI services as plain Go calls. Its folders own the rest: bundle the tools it runs, image the
// images, registry where they are pulled from, recovery what a power cut leaves, layout the paths
// they share.
//
// It must not import server, agent, store, netproxy or cmd.
package runtime
