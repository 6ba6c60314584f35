// Command idle measures what an idle mote costs: executable size, time from start to a ready node,
// memory by kind, idle CPU; then the same with pods; then, on request, the upstream programs that
// do the same job. It works in a sandbox and drives built executables.
//
// It must not import anything else of this repository but test/bench/measure and
// test/tools/sandbox.
package main
