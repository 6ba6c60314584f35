// Package kubelet owns how the Kubernetes kubelet is composed in this process: its configuration,
// its clients, and the container runtime, which it gets as Go interfaces.
//
// It must not import server, store, runtime, netproxy or cmd.
package kubelet
