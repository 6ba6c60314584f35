// Package clock owns the black-box tests of mote with a wrong clock, with a clock that is set while
// mote runs, and after years of running. Only mote and what it starts see the shifted clock
// (test/tools/clockshift); the machine's own clock is untouched.
//
// It must not import anything else of this repository but test/tools/harness and
// test/tools/sandbox.
package clock
