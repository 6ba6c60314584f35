// Package logging owns the process's one logger, and which of the lines that Kubernetes' libraries
// log are worth writing. Package upstream connects it to them.
//
// It must not import anything else of this repository.
package logging
