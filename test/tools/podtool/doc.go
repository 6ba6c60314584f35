// Command podtool is what the end-to-end tests run inside pods where a shell is not enough: it speaks to the API with the pod's own
// account, asks DNS precisely, uses up memory. It must import the standard library only, so that its image is one static file.
package main
