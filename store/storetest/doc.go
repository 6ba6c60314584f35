// Package storetest owns an etcd for tests that costs nothing to start: the store itself. Only
// tests may import it. It must not import anything else of this repository but store.
package storetest
