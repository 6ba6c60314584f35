// Package nodename owns which names a node may have, and the name a host's name makes.
//
// It must not import anything else of this repository.
package nodename
