// Package e2e drives the built mote executable exactly as a user would, through its command line, kubectl, curl and client-go, inside
// a sandbox that is thrown away. Run it with `make e2e`. It must not import anything of mote's.
package e2e
