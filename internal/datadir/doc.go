// Package datadir owns the data folder as a whole: that one mote uses it at a
// time, that a mote never works on what a newer one wrote, and which files
// outside of it mote made. What lies inside belongs to the parts.
//
// It must not import any other package of mote.
package datadir
