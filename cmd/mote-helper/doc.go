// Command mote-helper is kubectl and ctr in one executable, embedded in mote and unpacked beside
// the node's other tools, so that the code of neither is part of the server. It is called as
// `mote-helper kubectl …` or `mote-helper ctr …`, or through a link of that name.
//
// It must not import anything else of this repository.
package main
