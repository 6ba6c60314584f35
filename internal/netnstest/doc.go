// Package netnstest owns network namespaces for tests: there a test may set up links, addresses and
// packet filters that neither the machine nor another test sees. Only tests use it.
//
// It must not import anything else of this repository.
package netnstest
