// Package measure owns starting a cluster made of processes and measuring what they use: time,
// memory, CPU, writes.
//
// It must not import anything else of this repository but test/tools/sandbox.
package measure
