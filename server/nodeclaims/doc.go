// Package nodeclaims owns the admission plugin that bounds what a node may say of itself, where
// other machines act on it: its pod range, its addresses, those of its pods, and the labels that
// choose it. Upstream's NodeRestriction bounds which objects a node may write; what it lets through
// is believed by every other node.
//
// It must not import anything else of this repository but internal.
package nodeclaims
