// Command idle measures what a mote costs that has nothing to do: size of the executable, time from start to a ready node, memory by
// kind, CPU while idle; then the same with pods. It works in a sandbox, drives the built executable and must not import anything of mote's.
package main
