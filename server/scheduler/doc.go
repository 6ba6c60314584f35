// Package scheduler owns how Kubernetes' scheduler runs in this process, on the shared informers
// and the in-memory transport.
//
// It must not import server/apiserver, server/controllers or agent.
package scheduler
