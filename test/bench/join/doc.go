// Command join measures what nodes cost their server: many hollow ones (test/bench/hollow) join one mote on this machine and keep their
// heartbeats; how long it takes, and what the server needs of memory, CPU and writes for each. It works in a sandbox, drives built
// executables and must not import anything of mote's.
package main
