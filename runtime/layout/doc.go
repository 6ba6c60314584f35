// Package layout owns where the container runtime of an agent's data folder keeps its files, and
// the names that the daemon, its images and its recovery must agree on. Running containers are
// found again by these paths after an upgrade, so they must not change.
//
// It must not import anything else of this repository but internal/datadir.
package layout
