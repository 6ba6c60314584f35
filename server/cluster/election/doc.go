// Package election owns which of several servers runs a part that may run only once: the one that
// holds a lease in the API, as with upstream's components.
//
// It must not import anything else of this repository but internal/retry.
package election
