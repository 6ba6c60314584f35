// Package eventwindow owns letting go of the past events that upstream's watch caches keep for
// watchers that come back, once a burst of events is over.
//
// It must not import anything else of this repository.
package eventwindow
