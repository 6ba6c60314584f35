// Package cluster owns the black-box tests that need several hosts. Each host has its own
// processes, network, mounts and disk inside a sandbox: a server, an agent on its network and one
// behind a NAT; and three servers on an etcd. Run it with `make e2e-hosts`.
//
// It must not import anything else of this repository but test/tools/harness and
// test/tools/sandbox.
package cluster
