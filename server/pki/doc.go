// Package pki owns the cluster's certificate authorities, keys and the
// certificates the server itself needs, kept as PEM files under
// <data-dir>/server/tls.
//
// It must not import the API server, the agent or anything that serves.
package pki
