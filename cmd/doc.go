// Package cmd owns the command line: one file a command, where settings come
// from, what is refused before anything changes, and how faults are told. It is
// the only package that reads flags, environment and configuration files.
//
// No other package of mote may import it, and none of its files may hold what a
// part does: that belongs to the part.
package cmd
