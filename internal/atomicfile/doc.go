// Package atomicfile owns replacing a file so that a power cut leaves the old or the whole new one.
//
// It must not import anything else of this repository.
package atomicfile
