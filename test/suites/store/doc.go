// Package store holds the black-box tests of the store that need large neighbours: the API server's
// own storage tests, a real etcd to compare with, a linearizability checker and a file system that
// loses power. It is a module of its own, so that none of those get into mote's.
//
// It must not import anything else of this repository but store and test/suites/store/apiserver.
package store
