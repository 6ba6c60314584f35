// Package applyset owns applying a declared set of objects: server-side apply of each, and removal
// of those that an earlier version of the set declared and this one does not. Membership is
// recorded in the cluster as ApplySets (KEP-3659), so that kubectl understands it.
//
// It must not import anything else of this repository.
package applyset
