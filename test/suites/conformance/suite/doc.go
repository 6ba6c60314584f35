// Package suite names the packages the conformance run is built from, so that go.mod pins all they need: the suite itself is upstream's, at the version mote is made of, and unchanged. It must not import anything of mote's.
package suite
