// Package scheduler owns how Kubernetes' scheduler runs in this process, on the
// shared informers and the in-memory transport.
//
// It must not import the API server package, the controllers or the agent.
package scheduler
