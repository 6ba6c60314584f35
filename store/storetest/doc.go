// Package storetest gives tests an etcd that costs nothing to start: the store itself. It must not be imported but by tests, nor
// import what the store must not.
package storetest
