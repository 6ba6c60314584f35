// Package pki owns the cluster's certificate authorities, its keys and the server's own
// certificates: PEM files under <data-dir>/server/tls.
//
// It must not import anything else of this repository but internal/atomicfile and
// internal/wallclock.
package pki
