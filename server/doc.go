// Package server owns the control plane: the API server, controllers and scheduler over the
// embedded store, in one process and under one Run.
//
// It must not import agent, runtime, netproxy or cmd.
package server
