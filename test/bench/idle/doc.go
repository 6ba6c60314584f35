// Command idle measures what a mote costs that has nothing to do: size of the executable, time from start to a ready node, memory by
// kind, CPU while idle; then the same with pods; then, if told to, all of it of the upstream programs that do the same. It works in a
// sandbox, drives built executables and must not import anything of mote's.
package main
