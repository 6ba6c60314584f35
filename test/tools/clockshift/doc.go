// Command clockshift runs a program, and all that it starts, with another wall clock than the machine's. The machine's own clock
// stays as it is, and so does the monotonic one: it is as if somebody had set the clock.
//
//	clockshift -by 9600h mote server
//	clockshift -at 1970-01-01T00:10:00Z -control DIR mote server
//
// Programs ask the kernel's vDSO for the time, a few functions that the kernel maps into each process. clockshift writes its own
// over them as soon as a process has begun a program, which it hears of by tracing it. So it works for static executables too, and
// costs a system call for each question. What asks the kernel itself sees the machine's clock: file times and absolute timers.
//
// The program takes the place of clockshift, with its process id, signals and exit code. A process beside it traces until the last
// of the program's descendants has ended; with -control it also listens on the socket DIR/PID.sock, where a line "by DURATION" sets
// the clock of all of them anew, answered by "ok".
//
// It must not import the tests or anything of mote's.
package main
