// Command shop is the example application: a web shop in one static binary. Its parts (web, ledger,
// seed, report, nodeinfo) are the workloads that deploy/ describes. It knows Kubernetes only
// through files, environment and HTTP, and uses the standard library alone.
//
// It must not import anything else of this repository.
package main
