// Package cmd owns the command line: one file a command, where settings come from, what is rejected
// before anything changes, and how errors are reported. It is the only package that reads flags,
// environment and configuration files, and has nothing that a part does itself.
//
// It must not import internal/tools or test.
package cmd
