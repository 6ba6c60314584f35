// Package harness owns what the suites that drive the built executable share: flags and sandbox,
// waiting, mote's process and its log, kubectl. What a suite expects of mote stays in the suite.
//
// It must not import anything else of this repository but test/tools/sandbox.
package harness
