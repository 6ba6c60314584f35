// Package clock holds black-box tests of mote with clocks that are wrong, are set while it runs, or have gone on for years. The
// clock of mote and of all it starts is another one, see test/tools/clockshift; the machine's stays as it is. It must not import anything
// of mote's.
package clock
