// Command conformance runs Kubernetes' own end-to-end suite against the built executable, in a sandbox, a process a spec, and keeps what
// came of each in results/, so that a run can be done in slices; RESULTS.md is written from there. It must not import anything of mote's.
package main
