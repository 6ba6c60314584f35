// Package upstreamflag owns the escape hatches: settings of the form "flag=value" for the flags
// that upstream's components have themselves.
//
// It must not import anything else of this repository.
package upstreamflag
