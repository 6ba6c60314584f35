// Command shop is the example application: a web shop in one static binary whose parts (web, ledger, seed, report, nodeinfo) are
// the workloads that deploy/ describes. It knows nothing of Kubernetes beyond files, environment and HTTP, and must import the standard library only.
package main
