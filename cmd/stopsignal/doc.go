// Package stopsignal owns the signals that ask the process to stop, from its first moments on.
//
// It must not import anything else of this repository.
package stopsignal
