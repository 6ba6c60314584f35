// Package kubelet owns how the Kubernetes kubelet is composed in this process:
// its configuration, its clients and the container runtime it is handed as Go
// interfaces.
//
// It must not import the server, the container runtime package or netproxy.
package kubelet
