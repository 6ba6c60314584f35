// Package informer owns the views that components of this process have of its
// one set of informers: events held back until a component is built, and
// objects left out that it must not hear of.
//
// It must not import any component that uses it.
package informer
