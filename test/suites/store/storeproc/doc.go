// Command storeproc runs a store alone, for tests that kill it. It prints "ready ADDRESS" when it
// answers. It must not import anything else of this repository but store.
package main
