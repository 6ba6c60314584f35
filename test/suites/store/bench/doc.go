// Command bench measures the store beside an etcd and a kine, each its own process, with the same
// client in one run, and prints a table with ratios. Run it with: make bench-store. It must not
// import anything else of this repository but store.
package main
