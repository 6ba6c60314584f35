// Package reconcile owns the loop that keeps something outside this process as it is wanted: it
// gathers triggers into passes, checks at intervals, and backs off while passes fail.
//
// It must not import anything else of this repository but internal/retry.
package reconcile
