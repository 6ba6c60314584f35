// Package datadir owns the data folder as a whole: the map of what lies where, that one mote uses
// it at a time and never works on what a newer one wrote, and which files outside of it mote made.
// The files themselves belong to the parts.
//
// It must not import anything else of this repository but internal/atomicfile and internal/retry.
package datadir
