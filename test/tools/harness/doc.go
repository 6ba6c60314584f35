// Package harness is what the suites that drive the built mote executable share: their flags and sandbox, waiting, mote's process with
// its log, and kubectl. What a suite asks of mote is in the suite. It must not import anything of mote's.
package harness
