// Package giveback owns when a process gives memory back to the machine: Go and the kernel both
// keep what a start or a burst of work needed, for the next one.
//
// It must not import anything else of this repository.
package giveback
