// Command clockshift runs a program, and all that it starts, with another wall clock than the
// machine's. The machine's own clock stays as it is, and so does the monotonic clock: the program
// sees what it would see if somebody had set the clock.
//
//	clockshift -by 9600h mote server
//	clockshift -at 1970-01-01T00:10:00Z -control DIR mote server
//
// Programs read the time through the vDSO, a few functions that the kernel maps into each process.
// clockshift traces the processes and overwrites those functions with its own as soon as a process
// has executed a program. This also works for static executables and costs one system call per
// reading. Direct requests to the kernel still see the machine's clock: file times and absolute
// timers.
//
// The program takes the place of clockshift, with its process ID, signals and exit code. A second
// process traces until the last of the program's descendants has ended. With -control it also
// listens on the socket DIR/PID.sock: a line "by DURATION" sets the clock of all of them again and
// is answered with "ok".
//
// It must not import anything else of this repository.
package main
