// Command operator is a small controller-runtime operator that the end-to-end tests run in a pod.
// For each Greeting it keeps a ConfigMap with the greeting's text and reports it in the status.
//
// It must not import anything else of this repository.
package main
