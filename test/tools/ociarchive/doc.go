// Command ociarchive packs files of this machine into an OCI image archive, with no daemon, registry or network: the way the
// examples' and the tests' images are made. The same input gives the same bytes. It uses the standard library only and must not import any other package of ours.
package main
