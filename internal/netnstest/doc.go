// Package netnstest runs tests in network namespaces of their own, where they may set up links, addresses and packet
// filters that neither the machine nor another test sees. It must not be imported but by tests, nor import anything of mote.
package netnstest
