// Package part owns how the parts of a role start and stop. A role is a table of parts, each with
// what it needs; a Set starts every part once its needs are ready, and stops it before they stop.
// Disabling, leadership, status and documentation are read from the same table.
//
// It must not import anything else of this repository.
package part
