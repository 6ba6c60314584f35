// Package execpages owns giving back the pages of mote's own executable that only starting needed:
// the kernel maps an executable in large pieces and keeps them for as long as they are mapped.
//
// It must not import anything else of this repository.
package execpages
