// Package hostports owns how a node reports which ports its host listens on, so that the load
// balancer gives none of them to a service: the annotation on the Node and its form.
//
// It must not import anything else of this repository.
package hostports
