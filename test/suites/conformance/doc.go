// Command conformance runs Kubernetes' own end-to-end suite against the built executable in a
// sandbox, one process a spec. It keeps each result in results/, so a run can be done in slices,
// and writes RESULTS.md from there.
//
// It must not import anything else of this repository but test/tools/sandbox.
package main
