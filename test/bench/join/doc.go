// Command join measures what nodes cost a server: many hollow nodes (test/bench/hollow) join one
// mote on this machine and keep their heartbeats. It reports the time that takes, and the memory,
// CPU and writes per node. It works in a sandbox and drives built executables.
//
// It must not import anything else of this repository but test/bench/measure and
// test/tools/sandbox.
package main
