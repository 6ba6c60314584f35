// Package logging owns the process's one logger and the bridges that send the
// log lines of Kubernetes' libraries into it.
//
// It must not import any other package of mote.
package logging
