// Package controllers owns how Kubernetes' controllers run in this process: on the shared informers
// and the in-memory transport, each under its own service account's rights.
//
// It must not import server/apiserver, server/scheduler or agent.
package controllers
