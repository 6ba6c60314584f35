// Package hostaddr owns the question under which addresses this machine is
// reached, also before it has a network and when that changes.
//
// It must not import anything else of mote: server and agent both use it.
package hostaddr
