// Package hostcheck owns what mote needs of a host: finding out whether it is
// there, by trying it rather than by asking for modules or settings, and saying
// what to do where it is not.
//
// It must not import any other package of mote.
package hostcheck
