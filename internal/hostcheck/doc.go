// Package hostcheck owns what mote requires of a host: it tests for it by trying it, rather than by
// looking for modules or settings, and says what to do where it is missing.
//
// It must not import anything else of this repository but internal/clusterconfig,
// internal/hostnets, internal/resolvconf and internal/wallclock.
package hostcheck
