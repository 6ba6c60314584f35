// Package clusterconfig owns the settings that every server and node of a cluster must agree on:
// their type, defaults, validation and JSON form.
//
// It must not import anything else of this repository.
package clusterconfig
