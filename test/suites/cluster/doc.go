// Package cluster drives the built mote executable on several hosts, each with processes, network, mounts and disk of its own inside a
// sandbox: a server, an agent beside it, and one behind a NAT; and three servers on an etcd. Run it with `make e2e-hosts`. It must not import anything of mote's.
package cluster
