// Package suite owns the list of packages the conformance run is built from, so that go.mod pins
// their versions. The suite is upstream's, unchanged, at the version mote is made of.
//
// It must not import anything else of this repository.
package suite
