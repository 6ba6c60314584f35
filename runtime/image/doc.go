// Package image owns the images of a node: checking and importing archives, loading them at start,
// rebuilding images from their content after damage, and listing and removing the images of a
// running mote.
//
// It must not import server, agent, store, netproxy or cmd.
package image
