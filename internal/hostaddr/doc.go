// Package hostaddr owns the addresses this machine is reached at: what they are, what stands in for
// them before there is a network, and when they change.
//
// It must not import anything else of this repository but internal/retry.
package hostaddr
