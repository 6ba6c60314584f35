// Command load measures what a load leaves behind: clients write and read objects of one mote on
// this machine as fast as they can, twice. It reports the server's memory before, after each load
// and some minutes later. It works in a sandbox and drives built executables.
//
// It must not import anything else of this repository but test/bench/measure.
package main
