// Package bundle owns the tools embedded in the executable (runc, its shim, the CNI plugins, the
// pause image, the kubectl and ctr helper): unpacking them by content hash, and detecting and
// repairing damage.
//
// It must not import anything else of this repository but internal/atomicfile and internal/datadir.
package bundle
