// Package e2e owns the black-box tests of one mote: it drives the built executable as a user would,
// with its command line, kubectl, curl and client-go, in a sandbox that is thrown away. Run it with
// `make e2e`.
//
// It must not import anything else of this repository but test/tools/harness and
// test/tools/sandbox.
package e2e
