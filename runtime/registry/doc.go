// Package registry owns registries.yaml: reading it, the settings containerd gets from it, and the
// proxy that renames images for mirrors with rewrites.
//
// It must not import server, agent, store, netproxy or cmd.
package registry
