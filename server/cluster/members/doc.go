// Package members owns which servers share an etcd: each has an entry with its
// addresses that ends soon after the server does, and a name of its own.
//
// It must not import anything else of this repository but internal/retry.
package members
