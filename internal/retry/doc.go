// Package retry owns what every loop that tries again needs: growing pauses between attempts, and
// one log line for a failure that keeps happening.
//
// It must not import anything else of this repository.
package retry
