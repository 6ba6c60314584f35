// Command pack turns the built tools and the pause program into the bundle that mote embeds: one
// solid tar, compressed as far as it goes, and a manifest that names every file with its size and
// hash.
//
// It must not import anything else of this repository but runtime/bundle and
// runtime/image/ociarchive.
package main
