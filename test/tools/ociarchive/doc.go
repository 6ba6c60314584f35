// Command ociarchive packs files of this machine into an OCI image archive, without a daemon,
// registry or network. The examples' and the tests' images are made with it. The same input gives
// the same bytes. It uses the standard library alone.
//
// It must not import anything else of this repository.
package main
