// Package joinapi owns what goes over the wire when a node joins a cluster and stays with it:
// paths, messages, error codes and the form of tokens.
//
// It must not import anything else of this repository but internal/clusterconfig.
package joinapi
