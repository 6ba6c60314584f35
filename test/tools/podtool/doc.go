// Command podtool is what the end-to-end tests run in pods where a shell is not enough: it calls
// the API with the pod's own account, sends exact DNS queries, uses up memory. It uses the standard
// library alone, so its image is one static file.
//
// It must not import anything else of this repository.
package main
