// Package bundle owns the tools embedded in the executable (runc, its shim, the
// CNI plugins, the pause image, the kubectl and ctr helper): unpacking them by
// content hash, and noticing and repairing damage. It must not import containerd
// or other packages of mote.
package bundle
