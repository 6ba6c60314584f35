// Package measure starts clusters made of processes and measures what those need: time, memory, CPU, writes. It must not import
// anything of mote's, whose built executable is one of them.
package measure
