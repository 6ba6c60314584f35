// Command operator is a small operator written with controller-runtime, which the end-to-end tests run in a pod: for each Greeting
// it keeps a ConfigMap with the greeting's text and reports it in the status. It must not import anything of mote's.
package main
