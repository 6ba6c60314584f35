// Package members owns which servers share an etcd: each has a unique name and an entry with its
// addresses, which expires soon after the server has gone.
//
// It must not import server, agent or k8s.io.
package members
