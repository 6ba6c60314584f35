// Package habits owns the answers to what people know from k3s, k0s, kubeadm and MicroK8s: their
// flags, keys of files, environment variables, commands and names of components, each with mote's
// name for it or what to do instead.
//
// It must not import anything else of this repository.
package habits
